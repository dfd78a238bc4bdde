"""The options of `curve`, which the function `tokenshards.curve` takes too."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from tokenshards.pipeline.commands.options import JsonFlag, Quiet, StorageOptions, Workers, parse_options
from tokenshards.pipeline.commands.source_options import SourceOptions
from tokenshards.stem_adaptors.commands.image_sources import Images, ValImages, image_sources

if TYPE_CHECKING:
    from tokenshards.stem_adaptors.curves.curve_config import CurveRequest

__all__ = ["CurveOptions"]


@dataclass(frozen=True, kw_only=True)
class CurveOptions(SourceOptions):
    """The arguments and options of `curve`. Each field has the name of its option."""

    hidden: ClassVar[tuple[str, ...]] = tuple(
        field.name for field in fields(SourceOptions) if field.name in ("id_column", "meta", "tars_per_shard", "unreadable")
    )

    data: Annotated[str, typer.Argument(help="Dataset of tokens to learn from, local or any fsspec URL.")]
    val: Annotated[str, typer.Option("--val", help="Dataset of the same tokenizer to measure on.")]
    bytes: Annotated[
        list[str],
        typer.Option("--bytes", metavar="SIZES", help="Budgets with commas between them: `0.1MB,300kB,1GiB`, plain numbers are bytes."),
    ]
    choice: Annotated[str, typer.Option(help="Images that a budget holds: `stratified`, an equal share of each class, or `random`.")] = (
        "stratified"
    )
    minutes: Annotated[float, typer.Option(help="Minutes of one core, or of one GPU, for each training.")] = 1.0
    seeds: Annotated[int, typer.Option(help="Trainings of each side and budget; each draws its own images.")] = 3
    images: Images = None
    val_images: ValImages = None
    out: Annotated[str, typer.Option(help="Folder or URL that keeps everything; the same command continues there.")] = "curve"
    to: Annotated[
        list[str] | None,
        typer.Option(help="Also write a table (.html, .md), the plot (.png) or all figures (.json); may be repeated."),
    ] = None
    device: Annotated[str, typer.Option(help="Where classifiers learn: `cpu`, `cuda`.")] = "cpu"
    workers: Workers = None
    storage_option: StorageOptions = None
    quiet: Quiet = False
    as_json: JsonFlag = False

    def request(self) -> CurveRequest:
        """Return what to measure. Raises ConfigError if an option has an invalid value."""
        from tokenshards.pipeline.config import RunConfig
        from tokenshards.stem_adaptors.curves.byte_sizes import sizes_of
        from tokenshards.stem_adaptors.curves.curve_config import CurveRequest

        run = RunConfig(workers=self.workers, max_bad=1.0)
        return CurveRequest(
            data_url=self.data,
            val_url=self.val,
            budgets=sizes_of("--bytes", self.bytes),
            images=image_sources(self, self.images, self.val_images, self.out, run),
            choice=self.choice,
            minutes=self.minutes,
            seeds=self.seeds,
            out_url=self.out,
            storage_options=parse_options(self.storage_option),
            device=self.device,
            run=run,
        )
