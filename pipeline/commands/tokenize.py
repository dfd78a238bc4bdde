"""`tokenize` and `plan`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenshards.pipeline.commands.options import (
    Beam,
    Codec,
    Codes,
    FitSeed,
    JsonFlag,
    Kind,
    Levels,
    Out,
    OutOptions,
    Patch,
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
    takes,
)
from tokenshards.pipeline.commands.output import doubts_as_json, finish_run, finish_splits, print_json
from tokenshards.pipeline.commands.process import worker_count
from tokenshards.pipeline.commands.source_options import Splits, takes_source
from tokenshards.pipeline.commands.tokenize_options import TokenizeOptions

if TYPE_CHECKING:
    from tokenshards.pipeline.config import SourceConfig

__all__ = ["app"]

app = typer.Typer()


@app.command("tokenize", epilog="Example: tokenshards tokenize photos/ photos.tokens --workers 8")
@takes(TokenizeOptions)
def tokenize_command(options: TokenizeOptions) -> None:
    """Turn images into token shards. Run the same command again to continue; a complete dataset is not changed."""
    from tokenshards.pipeline.commands.tokenizing import run_conversions
    from tokenshards.pipeline.reports.terminal import TerminalReporter

    with doubts_as_json(options.as_json):
        outcomes = run_conversions(options, TerminalReporter(quiet=options.quiet))
    stores = options.stores_of_out()
    if options.splits:
        finish_splits(options.out, stores, outcomes, options.as_json, options.quiet)
    else:
        finish_run(options.out, stores, outcomes[None], options.as_json, options.quiet)


@app.command("plan", epilog="Example: tokenshards plan s3://bucket/photos s3://bucket/tokens --price-per-hour 1.20 --workers 32")
@takes_source(without=["unreadable"])
def plan_command(
    src: Source,
    out: Out,
    tokenizer: TokenizerOption = None,
    shard_rows: ShardRows = None,
    codec: Codec = "default",
    views: Views = "one",
    workers: Workers = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Price of the machine per hour, in your currency.")] = None,
    kind: Kind = None,
    size: Size = None,
    patch: Patch = None,
    site: Site = None,
    levels: Levels = None,
    codes: Codes = None,
    beam: Beam = None,
    seed: FitSeed = None,
    splits: Splits = False,
    reading: Any = None,
    storage_option: StorageOptions = None,
    out_option: OutOptions = None,
    tokenizer_option: TokenizerOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Dry run: list the inputs, time a small sample, and estimate time, size and cost of the job. Writes nothing."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # before numpy is imported: we time one worker, which has one thread
    from tokenshards.pipeline.config import PlanConfig
    from tokenshards.pipeline.conversion.estimate import estimate_job
    from tokenshards.pipeline.conversion.fit_kinds import OwnFitOptions
    from tokenshards.pipeline.conversion.request import check_fit_options
    from tokenshards.pipeline.conversion.split_runs import splits_of_source
    from tokenshards.pipeline.conversion.tokenize import adopt_tokenizer
    from tokenshards.pipeline.errors import require
    from tokenshards.pipeline.planning.nesting import refuse_nesting
    from tokenshards.pipeline.planning.plan import load_plan
    from tokenshards.pipeline.reports.terminal import TerminalReporter, print_table
    from tokenshards.pipeline.storage.store import Store

    count = worker_count(workers)
    fit_options = OwnFitOptions(kind=kind, size=size, patch=patch, site=site, levels=levels, codes=codes, beam=beam, seed=seed)
    fit = fit_options.own_config()
    require(price_per_hour is None or price_per_hour > 0, "--price-per-hour", price_per_hour, "a price above 0")
    reporter, source = TerminalReporter(), reading(src)
    store = Store(out, storage_options=side_options("out", out, storage_option, out_option))
    existing = load_plan(store)
    if existing is None:
        refuse_nesting(src, source, store)
    else:
        source = replace(source, yes=True)  # its doubts are settled
        reporter.say(
            f"{store.url} already holds plan {existing.plan_id[:12]}; `tokenize` would continue it. This estimate is for a new plan"
        )
    weights = side_options("tokenizer", tokenizer, storage_option, tokenizer_option)
    with doubts_as_json(as_json):
        parts: dict[str | None, SourceConfig] = {None: source}
        if splits:
            parts = dict(splits_of_source(src, source, reporter.say).items())
        adopted, classes = None, frozenset[int | str]()
        if tokenizer:
            adopted, statistics, known = adopt_tokenizer(tokenizer, weights)
            check_fit_options(fit_options, tokenizer, adopted.spec, statistics)
            classes = frozenset(known)
        estimates = {}
        for split, part in parts.items():
            if split is not None:
                reporter.say(f"split {split}:")
            estimates[split] = estimate_job(
                src,
                part,
                PlanConfig(shard_rows=shard_rows, codec=codec, views=views),
                fit,
                tokenizer=adopted,
                workers=count,
                price_per_hour=price_per_hour,
                classes=classes,
                say=reporter.say,
            )
            classes = classes or estimates[split].classes  # the other splits get the class table of the first
    if as_json:
        whole = {split: estimate.to_json() for split, estimate in estimates.items()}
        print_json({"splits": whole} if splits else whole[None])
        return
    for split, estimate in estimates.items():
        print_table(estimate.rows(), title=f"{store.url}{'' if split is None else f'/{split}'}: nothing was written")
