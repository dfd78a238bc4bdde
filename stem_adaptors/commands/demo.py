"""`demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenshards.pipeline.commands.process import prepare_for_torch

__all__ = ["app"]

app = typer.Typer()


@app.command("demo", epilog="Example: tokenshards demo demo_out")
def demo_command(
    folder: Annotated[str, typer.Argument(help="Folder for the images, datasets and drawings of the demo.")] = "demo_out",
) -> None:
    """The whole job on real images that need no download: digits become tokens and then a classifier; photographs become tiles."""
    prepare_for_torch()
    from tokenshards.pipeline.commands.demo_images import run_demo
    from tokenshards.stem_adaptors.commands.demo_training import train_demo
    from tokenshards.stem_adaptors.reporting.progress import TrainingReporter

    run_demo(folder)
    train_demo(folder, TrainingReporter())
