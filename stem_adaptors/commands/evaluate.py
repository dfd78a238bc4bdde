"""`evaluate`: measure a run and print its accuracy."""

from __future__ import annotations

import typer

from tokenshards.pipeline.commands.options import takes
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch
from tokenshards.stem_adaptors.commands.evaluate_options import EvaluateOptions

__all__ = ["app"]

app = typer.Typer()


@app.command("evaluate", epilog="Example: tokenshards evaluate run photos_val --confusion confusion.png")
@takes(EvaluateOptions)
def evaluate_command(options: EvaluateOptions) -> None:
    """Accuracy of a run (of one that learned masks: IoU), also by class, on token shards or on images that are tokenized first."""
    prepare_for_torch()
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.stem_adaptors.commands.evaluating import run_evaluation

    report = run_evaluation(options)
    if options.as_json:
        print_json(report.to_json())
        return
    for title, rows in report.tables():
        print_table(rows, title=title)
    if options.confusion is not None:
        print(f"confusion matrix drawn in {options.confusion}")
