"""The options of `train`, which the function `tokenshards.train` takes too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from tokenshards.stem_adaptors.commands.run_options import RunOptions

__all__ = ["TrainOptions"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """The arguments and options of `train`. Each field has the name of its option."""

    classes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Learn and measure these classes only: names with commas between, or file:NAMES.txt with one a line; may be repeated.",
        ),
    ] = None
    objective: Annotated[
        str,
        typer.Option(help="`classify`: the class of an image; `segment`: the class of each pixel, from the masks that `tokenize` stored."),
    ] = "classify"
    train_part: Annotated[str | None, typer.Option(help="`all`, `head` (linear probe) or `attention`.", show_default="all")] = None
