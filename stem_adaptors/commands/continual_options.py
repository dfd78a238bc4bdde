"""The options of `continual`, which the function `tokenshards.continual` takes too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from tokenshards.pipeline.commands.options import JsonFlag, Quiet, StorageOptions, Workers, parse_options
from tokenshards.pipeline.commands.source_options import SourceOptions
from tokenshards.stem_adaptors.commands.curve_options import CurveOptions
from tokenshards.stem_adaptors.commands.image_sources import Images, ValImages, image_sources

if TYPE_CHECKING:
    from tokenshards.stem_adaptors.continual.continual_config import ContinualRequest

__all__ = ["ContinualOptions"]


@dataclass(frozen=True, kw_only=True)
class ContinualOptions(SourceOptions):
    """The arguments and options of `continual`. Each field has the name of its option."""

    hidden: ClassVar[tuple[str, ...]] = CurveOptions.hidden

    data: Annotated[str, typer.Argument(help="Dataset of tokens, local or any fsspec URL; its classes come in groups.")]
    val: Annotated[str, typer.Option("--val", help="Dataset of the same tokenizer to measure on.")]
    replay: Annotated[
        list[str],
        typer.Option("--replay", metavar="SIZES", help="Bytes of the replay memory, with commas between them: `20kB,0.1MB`."),
    ]
    steps: Annotated[int, typer.Option(help="Groups into which the classes are split; a step learns one of them.")] = 5
    choice: Annotated[
        str, typer.Option(help="Images of the memory: `herding`, those whose mean stays nearest to that of their class, or `random`.")
    ] = "herding"
    references: Annotated[
        bool, typer.Option("--references/--no-references", help="Also train without a memory, and with all images of earlier classes.")
    ] = True
    minutes: Annotated[float, typer.Option(help="Minutes of one core, or of one GPU, for each step.")] = 1.0
    seeds: Annotated[int, typer.Option(help="Repetitions of each side; each brings the classes in another order.")] = 3
    images: Images = None
    val_images: ValImages = None
    matrix: Annotated[bool, typer.Option("--matrix", help="Also print the accuracy on each group after each step.")] = False
    out: Annotated[str, typer.Option(help="Folder or URL that keeps everything; the same command continues there.")] = "continual"
    to: Annotated[
        list[str] | None,
        typer.Option(help="Also write a table (.html, .md), the plot (.png) or all figures (.json); may be repeated."),
    ] = None
    device: Annotated[str, typer.Option(help="Where classifiers learn: `cpu`, `cuda`.")] = "cpu"
    workers: Workers = None
    storage_option: StorageOptions = None
    quiet: Quiet = False
    as_json: JsonFlag = False

    def request(self) -> ContinualRequest:
        """Return what to measure. Raises ConfigError if an option has an invalid value."""
        from tokenshards.pipeline.config import RunConfig
        from tokenshards.stem_adaptors.continual.continual_config import ContinualRequest
        from tokenshards.stem_adaptors.curves.byte_sizes import sizes_of

        run = RunConfig(workers=self.workers, max_bad=1.0)
        return ContinualRequest(
            data_url=self.data,
            val_url=self.val,
            budgets=sizes_of("--replay", self.replay),
            steps=self.steps,
            images=image_sources(self, self.images, self.val_images, self.out, run),
            choice=self.choice,
            references=self.references,
            minutes=self.minutes,
            seeds=self.seeds,
            out_url=self.out,
            storage_options=parse_options(self.storage_option),
            device=self.device,
            run=run,
        )
