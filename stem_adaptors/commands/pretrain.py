"""`pretrain`: learn an encoder without labels and print its report."""

from __future__ import annotations

import typer

from tokenshards.pipeline.commands.options import takes
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch
from tokenshards.stem_adaptors.commands.pretrain_options import PretrainOptions

__all__ = ["app"]

app = typer.Typer()


@app.command("pretrain", epilog="Example: tokenshards pretrain photos_train --val photos_val --out pretrained")
@takes(PretrainOptions)
def pretrain_command(options: PretrainOptions) -> None:
    """Learn an encoder from token shards without labels (masked token modelling). `train --pretrained RUN` fine-tunes it with labels."""
    prepare_for_torch()
    from tokenshards.pipeline.errors import StoppedError
    from tokenshards.stem_adaptors.commands.pretraining import run_pretraining

    try:
        report = run_pretraining(options)
    except StoppedError as stop:  # its message has been said
        raise SystemExit(stop.exit_code) from None
    if report.rank:
        return
    if options.as_json:
        print_json(report.to_json())
        return
    if report.best_masked_accuracy is not None:
        print(f"{report.run}: best {report.best_masked_accuracy:.1%} of hidden tokens right, after epoch {report.best_epoch}")
    print(f"fine-tune it with: tokenshards train DATA --val VAL --out RUN --pretrained {report.run}")
