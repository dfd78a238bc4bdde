"""Options that several commands of training share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Device", "TopClasses", "Weights"]

Device = Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:1`.")]
Weights = Annotated[str, typer.Option(help="`best` on the validation set, `last`, or `ema`: the last averaged ones of a run with --ema.")]
TopClasses = Annotated[int, typer.Option(help="Classes to print of each image.")]
