"""`tokenize --splits`: one dataset per split of a source, with the tokenizer and the class table of the first one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.conversion.request import Outcome, Reporter, TokenizeRequest
from tokenshards.pipeline.conversion.tokenize import Conversion
from tokenshards.pipeline.errors import ConfigError, DoubtError
from tokenshards.pipeline.planning.plan import CURRENT_PLAN, load_plan
from tokenshards.pipeline.records import Label, PlanRow
from tokenshards.pipeline.runners.base import Runner
from tokenshards.pipeline.shards.split_index import read_split_index, write_split_index
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.base import readable_text
from tokenshards.pipeline.sources.doubts import ANY_IMAGES
from tokenshards.pipeline.sources.label_table import names_table
from tokenshards.pipeline.sources.labels.rule import LabelRule
from tokenshards.pipeline.sources.splits import ALL_SPLITS, in_order, split_at, split_of_file
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["splits_of_source", "tokenize_splits"]


@dataclass(slots=True)
class _Labels:
    """Labels of the images of one split in a folder."""

    by_table: int = 0
    """Images that the table of --label-from names."""
    by_folder: Counter[Label] = field(default_factory=Counter)
    """Images by the label that they have without options."""


def splits_of_source(url: str, config: SourceConfig, say: Callable[[str], None] = lambda line: None) -> dict[str, SourceConfig]:
    """Return the splits of a source, train first, each with the config that takes it.

    In a folder a table of labels may name the images of some splits alone: the others are labelled as without it. Raises ConfigError for
    fewer than two splits, DoubtError if some inputs are of no split.
    """
    if config.split is not None:
        raise ConfigError(f"--splits was given beside --split {config.split}; expected one of them: every split, or one")
    source = open_source(url, replace(config, split=ALL_SPLITS))
    inside = source.kind != "folder" and not source.summary.splits
    labels: dict[str, _Labels] = {}
    if source.kind == "folder":
        labels = _labels_of(source.list_rows())
        inputs = source.summary.files
    elif inside:  # a column, or folders inside the tars, tell the splits
        for _ in source.list_rows():
            pass
        inputs = source.summary.rows if source.kind == "table" else source.summary.images
    else:  # the splits are known from the names of the files
        inputs = len(getattr(source, "files", ()))
        if source.kind == "tar" and inputs > source.summary.splits.total():  # of the others some may hold no images
            inputs = source.summary.splits.total() + sum(split_of_file(readable_text(row.path)) is None for row in source.list_rows())
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
        inputs_are = counted(rest, f"{noun} is", f"{noun}s are")
        raise DoubtError(
            f"{source.store.url}: {inputs_are} of no split and would be left out by --splits; expected --yes to go on without "
            "them, or --split NAME for one split at a time",
            understood=source.summary.to_json(),
        )
    return {name: _config_of(name, config, labels, say) for name in in_order(found)}


def _labels_of(rows: Iterable[PlanRow]) -> dict[str, _Labels]:
    rule, folder, known, label = LabelRule.parse(None), None, _Labels(), None
    splits: dict[str, _Labels] = {}
    for row in rows:
        name = row.sample_id.rpartition("/")[0]
        if name != folder:  # the images of a folder come together
            folder = name
            split, place = split_at(folder)
            known = splits.setdefault(split or "", _Labels())
            label = rule.label_of(f"{folder}/", place)
        known.by_folder[label] += 1
        known.by_table += row.label is not None
    return splits


def _config_of(name: str, config: SourceConfig, labels: dict[str, _Labels], say: Callable[[str], None]) -> SourceConfig:
    """Return the config that takes one split, with another rule for labels where the asked one cannot mean this split."""
    part, seen = replace(config, split=name), labels.get(name, _Labels())
    if names_table(config.label_from) and any(split.by_table for split in labels.values()) and not seen.by_table:
        say(f"note: {config.label_from} names no image of the split {name}, which is labelled as without it")
        part = _without_table(part, "first")
    others = {label for split, counts in labels.items() if split != name for label in counts.by_folder if not _any_images(label)}
    by_folders = (config.label_from is None or part.label_from != config.label_from) and not config.no_labels
    if by_folders and others and len(seen.by_folder) == 1 and _any_images(next(iter(seen.by_folder))):
        (label,) = seen.by_folder
        say(
            f"note: all images of the split {name} lie in one folder {label!r}, which is no class of another split: they get no label; "
            "--label-from file:TABLE takes labels from a table"
        )
        part = replace(part, label_from="none")
    return part


def _any_images(label: Label) -> bool:
    return str(label).lower() in ANY_IMAGES


def _without_table(config: SourceConfig, rule: str | None = None) -> SourceConfig:
    return replace(config, label_from=rule, label=None, key_column=None, label_first=False)


def _continued(name: str, config: SourceConfig, store: Store) -> SourceConfig:
    """Return the config of a split that has a plan: it may have been labelled without the table of the others."""
    plan = load_plan(store)
    part = replace(config, split=name)
    if plan is None or not names_table(config.label_from) or plan.source_config(SourceConfig()).label_from == config.label_from:
        return part
    return _without_table(part)


def tokenize_splits(request: TokenizeRequest, reporter: Reporter, open_runner: Callable[[], Runner]) -> dict[str, Outcome]:
    """Make or continue OUT/train, OUT/val, … and return their outcomes.

    Raises ConfigError where OUT itself is a dataset, or where a tokenizer must be fitted and there is no split train; else what each
    conversion raises.
    """
    store = Store(request.out_url, storage_options=request.out_options, retry=request.run.retry)
    if store.info(CURRENT_PLAN) is not None:
        raise ConfigError(f"{store.url} is a dataset; expected an OUT of its own for --splits, which makes OUT/train and so on")
    known = read_split_index(store)
    parts = _configs(store, known, request, reporter.say)
    splits = tuple(parts)
    if splits[0] != "train" and request.tokenizer_url is None:
        raise ConfigError(f"--splits fits a tokenizer on the split train, and only {', '.join(splits)} were seen; expected --tokenizer")
    outcomes: dict[str, Outcome] = {}
    first = f"{request.out_url.rstrip('/')}/{splits[0]}"
    for name in splits:
        part = replace(request, out_url=f"{request.out_url.rstrip('/')}/{name}", source=parts[name])
        if outcomes:  # the tokenizer of the first split, and its class table
            part = replace(part, tokenizer_url=first, tokenizer_options=request.out_options)
            first_store = Store(first, storage_options=request.out_options, retry=request.run.retry)
            if _scales_16_bits(first_store):
                rules = replace(part.source.image_rules, sixteen_bit="scale")
                part = replace(part, source=replace(part.source, image_rules=rules))
            part = replace(part, source=_with_bits_of(first_store, part.source))
        reporter.say(f"split {name}:")
        try:
            outcomes[name] = Conversion(part, reporter, open_runner()).run()
        finally:  # only now, so that a first split in doubt leaves nothing behind
            if not known and store.info(f"{splits[0]}/{CURRENT_PLAN}") is not None:
                write_split_index(store, splits)
                known = splits
    return outcomes


def _configs(store: Store, known: tuple[str, ...], request: TokenizeRequest, say: Callable[[str], None]) -> dict[str, SourceConfig]:
    """Return the config of each split: of one that has a plan as it was planned, of the others as the source shows."""
    stores = {name: Store(store.join(name), storage_options=request.out_options, retry=request.run.retry) for name in known}
    planned = {name: _continued(name, request.source, one) for name, one in stores.items() if one.info(CURRENT_PLAN) is not None}
    if not known or len(planned) < len(known):
        seen = splits_of_source(request.source_url, request.source, say)
        return {name: planned.get(name) or seen.get(name) or replace(request.source, split=name) for name in known or seen}
    if not any(part.label_from == request.source.label_from for part in planned.values()):  # the option is of no plan: each says so
        return {name: replace(request.source, split=name) for name in known}
    return planned


def _scales_16_bits(first: Store) -> bool:
    """Return whether the first split scales 16-bit images: the others do so then too, even if no image in their own sample asks for it."""
    plan = load_plan(first)
    return plan is not None and plan.source_config(SourceConfig()).image_rules.sixteen_bit == "scale"


def _with_bits_of(first: Store, config: SourceConfig) -> SourceConfig:
    """Return the config of a further split with masks of the bits of the first one, so that the datasets can be opened together."""
    plan = load_plan(first)
    if plan is None or plan.mask is None or not config.takes_masks or config.mask_rules.mask_bits is not None:
        return config
    bits = 8 * np.dtype(plan.mask_format.dtype).itemsize
    return replace(config, mask_rules=config.mask_rules.settled(bits=bits))
