"""The options of `compare`, which the function `tokenshards.compare` takes too."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from tokenshards.pipeline.commands.options import (
    Address,
    JsonFlag,
    OutOptions,
    Quiet,
    RunnerName,
    StorageOptions,
    TokenizerOptions,
    Workers,
    side_options,
)
from tokenshards.pipeline.commands.source_options import SourceOptions

if TYPE_CHECKING:
    from tokenshards.stem_adaptors.comparison.compare_config import CompareRequest

__all__ = ["CompareOptions"]

NONE = "none"


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SourceOptions):
    """The arguments and options of `compare`. Each field has the name of its option."""

    hidden: ClassVar[tuple[str, ...]] = tuple(
        field.name for field in fields(SourceOptions) if field.name in ("id_column", "meta", "tars_per_shard", "unreadable")
    )

    tokenizers: Annotated[
        list[str],
        typer.Argument(
            metavar="TOK...",
            help="Tokenizer directories, datasets, or kinds to fit, with options: `patch-kmeans`, `layered-kmeans:site=16,codes=512`.",
        ),
    ]
    images: Annotated[str, typer.Option("--images", help="Labelled images to fit to and to learn from, as for `tokenize`.")]
    val: Annotated[str, typer.Option("--val", help="Labelled images to measure on.")]
    out: Annotated[str, typer.Option(help="Folder or URL that keeps everything; the same command continues there.")] = "comparison"
    minutes: Annotated[float, typer.Option(help="Minutes of one core, or of one GPU, for each training; 0 trains nothing.")] = 1.0
    seeds: Annotated[int, typer.Option(help="Trainings of each side.")] = 3
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="What tokens are measured against: `jpeg` and `webp` at as many bytes, `pixels`; or `none`. May be repeated.",
            show_default="all three",
        ),
    ] = None
    stored_images: Annotated[int, typer.Option(help="Images that share the bytes of a tokenizer and of compact's model.")] = 100_000
    sample: Annotated[int, typer.Option(help="Most images to fit a kind to.")] = 20_000
    to: Annotated[
        list[str] | None,
        typer.Option(help="Also write a table (.html, .md), the plot (.png) or all figures (.json); may be repeated."),
    ] = None
    device: Annotated[str, typer.Option(help="Where classifiers learn: `cpu`, `cuda`.")] = "cpu"
    workers: Workers = None
    runner: RunnerName = "local"
    address: Address = None
    storage_option: StorageOptions = None
    out_option: OutOptions = None
    tokenizer_option: TokenizerOptions = None
    quiet: Quiet = False
    as_json: JsonFlag = False

    def request(self) -> CompareRequest:
        """Return what to compare. Raises ConfigError if an option has an invalid value."""
        from tokenshards.pipeline.config import RunConfig
        from tokenshards.pipeline.errors import ConfigError
        from tokenshards.stem_adaptors.comparison.compare_config import BASELINES, CompareRequest

        against = tuple(dict.fromkeys(self.against)) if self.against else BASELINES
        if NONE in against and len(against) > 1:
            raise ConfigError(f"--against is {', '.join(against)}; expected {NONE} alone, or some of {', '.join(BASELINES)}")
        return CompareRequest(
            tokenizers=tuple(self.tokenizers),
            images_url=self.images,
            images=self.config(self.images, self.storage_option),
            val_url=self.val,
            val=self.config(self.val, self.storage_option),
            out_url=self.out,
            out_options=side_options("out", self.out, self.storage_option, self.out_option),
            tokenizer_options=side_options("tokenizer", None, self.storage_option, self.tokenizer_option),
            minutes=self.minutes,
            seeds=self.seeds,
            against=() if against == (NONE,) else against,
            stored_images=self.stored_images,
            sample=self.sample,
            device=self.device,
            run=RunConfig(workers=self.workers, max_bad=1.0),
        )
