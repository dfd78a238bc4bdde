"""`predict`: print the classes of images by a trained run."""

from __future__ import annotations

import sys

import typer

from tokenshards.pipeline.commands.options import takes
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch
from tokenshards.stem_adaptors.commands.predict_options import PredictOptions

__all__ = ["app"]

app = typer.Typer()


@app.command("predict", epilog="Example: tokenshards predict run cat.jpg photos/")
@takes(PredictOptions)
def predict_command(options: PredictOptions) -> None:
    """Print the class of each image with its probability, one line each; exit code 1 if an image cannot be read."""
    prepare_for_torch()
    from tokenshards.stem_adaptors.commands.predicting import predictions

    failed = False
    for found in predictions(options):
        if found.error is not None:
            failed = True
            print(f"error: {found.image}: {found.error}", file=sys.stderr)
        elif options.as_json:
            print_json(found.to_json())
        else:
            print(f"{found.image}  " + "  ".join(f"{label} {share:.1%}" for label, share in found.classes))
    if failed:
        raise typer.Exit(1)
