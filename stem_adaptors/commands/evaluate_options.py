"""The options of `evaluate`, which the function `tokenshards.evaluate` takes too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from tokenshards.pipeline.commands.options import JsonFlag, Quiet, StorageOptions, Workers
from tokenshards.pipeline.commands.source_options import SourceOptions
from tokenshards.stem_adaptors.commands.options import Device, Weights

__all__ = ["EvaluateOptions"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SourceOptions):
    """The arguments and options of `evaluate`. Each field has the name of its option."""

    hidden: ClassVar[tuple[str, ...]] = ("tars_per_shard", "unreadable")

    run: Annotated[str, typer.Argument(help="Run directory made by `train`.")]
    data: Annotated[str | None, typer.Argument(help="Dataset of tokens with labels.")] = None
    images: Annotated[str | None, typer.Option(help="Measure on images instead: a folder with a sub-folder per class, tars or tables.")] = (
        None
    )
    confusion: Annotated[str | None, typer.Option(metavar="FILE.png", help="Draw the confusion matrix, of up to 2,000 classes.")] = None
    weights: Weights = "best"
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 256
    device: Device = "auto"
    workers: Workers = None
    storage_option: StorageOptions = None
    quiet: Quiet = False
    as_json: JsonFlag = False
