"""`tokenize --splits`: one dataset per split of a source, with the tokenizer and the class table of the first one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.conversion.request import Outcome, Reporter, TokenizeRequest
from tokenshards.pipeline.conversion.tokenize import Conversion
from tokenshards.pipeline.errors import ConfigError, DoubtError
from tokenshards.pipeline.planning.plan import CURRENT_PLAN, load_plan
from tokenshards.pipeline.runners.base import Runner
from tokenshards.pipeline.shards.split_index import read_split_index, write_split_index
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.splits import ALL_SPLITS, in_order
from tokenshards.pipeline.storage.store import Store

__all__ = ["splits_of_source", "tokenize_splits"]


def splits_of_source(url: str, config: SourceConfig) -> tuple[str, ...]:
    """Return the splits of a source, train first. Raises ConfigError for fewer than two, DoubtError if some inputs are of no split."""
    if config.split is not None:
        raise ConfigError(f"--splits was given beside --split {config.split}; expected one of them: every split, or one")
    source = open_source(url, replace(config, split=ALL_SPLITS))
    inside = source.kind != "folder" and not source.summary.splits
    if source.kind == "folder" or inside:  # else the splits are known from the names of the files
        for _ in source.list_rows():
            pass
        summary = source.summary
        inputs = summary.files if not inside else summary.rows if source.kind == "table" else summary.images
    else:
        inputs = len(getattr(source, "files", ()))
    found, noun = source.summary.splits, source.summary.noun if not inside else "row" if source.kind == "table" else "image"
    if len(found) < 2:
        seen = ", ".join(found) or "none"
        raise ConfigError(
            f"{source.store.url}: --splits expects folders or files of several splits, such as train/ and val/, or a column `split`; seen: "
            f"{seen}. Leave it out"
        )
    if inputs < 0:
        raise ConfigError(
            f"{source.store.url}: --splits expects tars whose names tell the split, or tars on a local disk, where all their folders can "
            f"be seen; those seen so far tell {', '.join(found)}. Give --split NAME and an OUT for each"
        )
    rest = inputs - found.total()
    if rest and not config.yes:
        raise DoubtError(
            f"{source.store.url}: {rest:,} {noun}s are of no split and would be left out by --splits; expected --yes to go on without "
            "them, or --split NAME for one split at a time",
            understood=source.summary.to_json(),
        )
    return tuple(in_order(found))


def tokenize_splits(request: TokenizeRequest, reporter: Reporter, open_runner: Callable[[], Runner]) -> dict[str, Outcome]:
    """Make or continue OUT/train, OUT/val, … and return their outcomes.

    Raises ConfigError where OUT itself is a dataset, or where a tokenizer must be fitted and there is no split train; else what each
    conversion raises.
    """
    store = Store(request.out_url, storage_options=request.out_options, retry=request.run.retry)
    if store.info(CURRENT_PLAN) is not None:
        raise ConfigError(f"{store.url} is a dataset; expected an OUT of its own for --splits, which makes OUT/train and so on")
    splits = known = read_split_index(store)
    if not splits:
        splits = splits_of_source(request.source_url, request.source)
    if splits[0] != "train" and request.tokenizer_url is None:
        raise ConfigError(f"--splits fits a tokenizer on the split train, and only {', '.join(splits)} were seen; expected --tokenizer")
    outcomes: dict[str, Outcome] = {}
    first = f"{request.out_url.rstrip('/')}/{splits[0]}"
    for name in splits:
        part = replace(request, out_url=f"{request.out_url.rstrip('/')}/{name}", source=replace(request.source, split=name))
        if outcomes:  # the tokenizer of the first split, and its class table
            part = replace(part, tokenizer_url=first, tokenizer_options=request.out_options)
            if _scales_16_bits(Store(first, storage_options=request.out_options, retry=request.run.retry)):
                rules = replace(part.source.image_rules, sixteen_bit="scale")
                part = replace(part, source=replace(part.source, image_rules=rules))
        reporter.say(f"split {name}:")
        try:
            outcomes[name] = Conversion(part, reporter, open_runner()).run()
        finally:  # only now, so that a first split in doubt leaves nothing behind
            if not known and store.info(f"{splits[0]}/{CURRENT_PLAN}") is not None:
                write_split_index(store, splits)
                known = splits
    return outcomes


def _scales_16_bits(first: Store) -> bool:
    """Return whether the first split scales 16-bit images: the others do so then too, even if no image in their own sample asks for it."""
    plan = load_plan(first)
    return plan is not None and plan.source_config(SourceConfig()).image_rules.sixteen_bit == "scale"
