"""The options of `pretrain`, which the function `tokenshards.pretrain` takes too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from tokenshards.stem_adaptors.commands.run_options import RunOptions

__all__ = ["PretrainOptions"]


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(RunOptions):
    """The arguments and options of `pretrain`. Each field has the name of its option."""

    objective: Annotated[str, typer.Option(help="What to learn without labels: `mtm`, masked token modelling (SeiT++).")] = "mtm"
