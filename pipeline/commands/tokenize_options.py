"""The options of `tokenize`, which `submit` and the function `tokenshards.tokenize` take too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenshards.pipeline.commands.options import (
    Address,
    Beam,
    Codec,
    Codes,
    CpusPerActor,
    DecodePlace,
    FitSeed,
    GiveUpAfter,
    GpusPerActor,
    JsonFlag,
    Kind,
    Levels,
    MaxActors,
    MaxBad,
    Out,
    OutOptions,
    Patch,
    Quiet,
    RunnerName,
    Sample,
    ShardRows,
    Site,
    Size,
    Source,
    StorageOptions,
    TokenizerOption,
    TokenizerOptions,
    Views,
    Workers,
    side_options,
)
from tokenshards.pipeline.commands.source_options import SourceOptions, Splits

if TYPE_CHECKING:
    from tokenshards.pipeline.config import RayConfig
    from tokenshards.pipeline.conversion.request import TokenizeRequest

__all__ = ["TokenizeOptions"]


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions(SourceOptions):
    """The arguments and options of `tokenize`. Each field has the name of its option."""

    src: Source
    out: Out
    tokenizer: TokenizerOption = None
    shard_rows: ShardRows = None
    codec: Codec = "default"
    views: Views = "one"
    workers: Workers = None
    max_bad: MaxBad = 0.01
    runner: RunnerName = "local"
    address: Address = None
    max_actors: MaxActors = None
    cpus_per_actor: CpusPerActor = 1
    gpus_per_actor: GpusPerActor = 0.0
    decode: DecodePlace = "auto"
    give_up_after: GiveUpAfter = 3600.0
    kind: Kind = None
    size: Size = None
    patch: Patch = None
    site: Site = None
    levels: Levels = None
    codes: Codes = None
    beam: Beam = None
    sample: Sample = 20_000
    seed: FitSeed = None
    splits: Splits = False
    join: Annotated[bool, typer.Option("--join", help="Share the work with another run on the same OUT.")] = False
    stall_timeout: Annotated[float, typer.Option(help="Shortest time in one stage of work that counts as hanging.")] = 300.0
    retry_attempts: Annotated[int, typer.Option(help="Attempts per store operation.")] = 8
    license: Annotated[str, typer.Option("--license", help="Licence of the images, for the dataset card.")] = ""
    storage_option: StorageOptions = None
    out_option: OutOptions = None
    tokenizer_option: TokenizerOptions = None
    quiet: Quiet = False
    as_json: JsonFlag = False

    def request(self) -> TokenizeRequest:
        """Return the work that the options ask for. Raises ConfigError if an option has an invalid value."""
        from tokenshards.pipeline.config import PlanConfig, RetryConfig, RunConfig
        from tokenshards.pipeline.conversion.fit_kinds import OwnFitOptions
        from tokenshards.pipeline.conversion.request import TokenizeRequest
        from tokenshards.pipeline.shards.codecs import check_codec

        check_codec(self.codec)
        fit_options = OwnFitOptions(
            kind=self.kind,
            size=self.size,
            patch=self.patch,
            site=self.site,
            levels=self.levels,
            codes=self.codes,
            beam=self.beam,
            sample=self.sample,
            seed=self.seed,
        )
        return TokenizeRequest(
            source_url=self.src,
            out_url=self.out,
            tokenizer_url=self.tokenizer,
            fit=fit_options.own_config(),
            fit_options=fit_options,
            source=self.config(self.src, self.storage_option),
            plan=PlanConfig(shard_rows=self.shard_rows, codec=self.codec, views=self.views),
            run=RunConfig(
                workers=self.workers,
                max_bad=self.max_bad,
                join=self.join,
                stall_timeout_seconds=self.stall_timeout,
                retry=RetryConfig(attempts=self.retry_attempts),
            ),
            out_options=self.stores_of_out(),
            tokenizer_options=side_options("tokenizer", self.tokenizer, self.storage_option, self.tokenizer_option),
            card={"licence": self.license} if self.license else {},
        )

    def stores_of_out(self) -> dict[str, Any]:
        """Return the storage options of OUT. Raises ConfigError."""
        return side_options("out", self.out, self.storage_option, self.out_option)

    def cluster(self) -> RayConfig:
        """Return how the work uses a Ray cluster. Raises ConfigError if an option has an invalid value."""
        from tokenshards.pipeline.config import RayConfig

        return RayConfig(
            address=self.address,
            max_actors=self.max_actors,
            cpus_per_actor=self.cpus_per_actor,
            gpus_per_actor=self.gpus_per_actor,
            decode=self.decode,
            idle_timeout_seconds=self.give_up_after,
        )
