"""`train`: train a classifier and print its report."""

from __future__ import annotations

import typer

from tokenshards.pipeline.commands.options import takes
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch
from tokenshards.stem_adaptors.commands.train_options import TrainOptions

__all__ = ["app"]

app = typer.Typer()


@app.command("train", epilog="Example: tokenshards train photos_train --val photos_val --out run")
@takes(TrainOptions)
def train_command(options: TrainOptions) -> None:
    """Train a classifier of images or pixels from token shards alone. Under torchrun all processes train; --resume continues exactly."""
    prepare_for_torch()
    from tokenshards.pipeline.errors import StoppedError
    from tokenshards.stem_adaptors.commands.training import run_training

    try:
        report = run_training(options)
    except StoppedError as stop:  # its message has been said
        raise SystemExit(stop.exit_code) from None
    if report.rank:
        return
    if options.as_json:
        print_json(report.to_json())
    elif report.best_top1 is not None or report.best_miou is not None:
        figure = f"top-1 {report.best_top1:.1%}" if report.best_top1 is not None else f"mean IoU {report.best_miou:.1%}"
        best = f"best {figure} after epoch {report.best_epoch}"
        print(f"{report.run}: {best}. Look at {report.run}/curves.png")
    else:
        print(f"{report.run}: trained. Measure it with: tokenshards evaluate {report.run} DATA")
