"""The options of `predict`, which the function `tokenshards.predict` takes too."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

import typer

from tokenshards.pipeline.commands.options import JsonFlag, StorageOptions
from tokenshards.pipeline.commands.source_options import IMAGES, SourceOptions
from tokenshards.stem_adaptors.commands.options import Device, TopClasses, Weights

__all__ = ["PredictOptions"]


@dataclass(frozen=True, kw_only=True)
class PredictOptions(SourceOptions):
    """The arguments and options of `predict`. Each field has the name of its option."""

    hidden: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(SourceOptions) if field.name not in (*IMAGES, "src_option"))

    run: Annotated[str, typer.Argument(help="Run directory made by `train`.")]
    images: Annotated[list[str], typer.Argument(help="Images, or folders of images; local or any fsspec URL.")]
    top: TopClasses = 1
    weights: Weights = "best"
    device: Device = "auto"
    storage_option: StorageOptions = None
    as_json: JsonFlag = False
