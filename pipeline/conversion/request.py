"""The request of a `tokenize` run, its reporter and its outcome, and checks of the request against an existing plan."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from tokenshards.pipeline.config import SHAPING_FIELDS, PlanConfig, RunConfig, SourceConfig
from tokenshards.pipeline.conversion.fit_kinds import OwnFitOptions
from tokenshards.pipeline.errors import ConfigError, PlanError, SourceError, UnreadableObjectError
from tokenshards.pipeline.ledger.progress import RunProgress
from tokenshards.pipeline.planning.plan import Plan, read_shard_rows
from tokenshards.pipeline.runners.stage_usage import RunUsage
from tokenshards.pipeline.shards.codecs import same_codec
from tokenshards.pipeline.shards.manifest import Manifest, load_pointer
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.sources import source_root
from tokenshards.pipeline.sources.base import readable_text
from tokenshards.pipeline.sources.mask_folder import find_masks, mask_store
from tokenshards.pipeline.storage.store import Store, absolute_url, display_url, is_absolute
from tokenshards.pipeline.tokenizers.config import FitConfig, OwnFitConfig
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, resolve_tokenizer

__all__ = [
    "Outcome",
    "Reporter",
    "TokenizeRequest",
    "check_fit_options",
    "check_request",
    "check_source",
    "sixteen_bit_note",
    "with_absolute_masks",
]

PROBED_ROWS = 16
SIXTEEN_BIT = "--sixteen-bit"


class Reporter(Protocol):
    """Receives messages and progress of a run for the user."""

    def say(self, message: str) -> None:
        """Print one line."""

    def begin(self, planned: int | None, done: int) -> None:
        """The work starts, with the number of planned inputs (None if tars are not counted yet) and of inputs already done."""

    def advance(self, progress: RunProgress) -> None:
        """Show how far the run is; called several times a second."""

    def end(self) -> None:
        """The work is over, with or without success."""


@dataclass(frozen=True, kw_only=True)
class TokenizeRequest:
    """All settings of a `tokenize` run."""

    source_url: str
    out_url: str
    tokenizer_url: str | None = None
    fit: OwnFitConfig = field(default_factory=FitConfig)
    fit_options: OwnFitOptions = field(default_factory=OwnFitOptions)
    """What was given of `fit`, and must not contradict an existing tokenizer."""
    source: SourceConfig = field(default_factory=SourceConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    run: RunConfig
    out_options: dict[str, Any] = field(default_factory=dict, repr=False)
    tokenizer_options: dict[str, Any] = field(default_factory=dict, repr=False)
    card: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a run: a complete dataset, and the counts of this run."""

    manifest: Manifest
    already_complete: bool
    images: int
    seconds: float
    usage: RunUsage | None
    """How busy the workers of the last generation were; None if there was nothing to do."""
    understood: dict[str, Any] | None = None
    """What was understood of the input, if this run made the plan."""


def check_request(plan: Plan, request: TokenizeRequest) -> None:
    """Raise ConfigError if an option contradicts the plan, PlanError if the plan is that of an import.

    An option that a person did not give contradicts nothing; of those that are no options of a fit, one at its default counts as such.
    """
    if plan.is_import:
        raise PlanError(
            f"{display_url(request.out_url)} holds tokens imported from {plan.source['url']}; `tokenize` makes tokens from images. "
            f"Continue it with `tokenshards import {plan.source['kind']}`, or choose another output"
        )
    asked, default_plan = request.plan, PlanConfig()
    different = [
        f"{option} {wanted} (the plan has {have})"
        for option, wanted, default, have in (
            ("--codec", plan.codec if same_codec(asked.codec, plan.codec) else asked.codec, default_plan.codec, plan.codec),
            ("--shard-rows", asked.shard_rows, default_plan.shard_rows, plan.shard_rows),
            ("--views", asked.views, default_plan.views, plan.view_policy),
        )
        if wanted not in (default, have)
    ]
    different += [
        f"{option} {wanted} (the plan has {have})"
        for option, wanted, have in _fitted_otherwise(request.fit_options, plan.spec, json.loads(plan.tokenizer_json)["statistics"])
    ]
    planned, untouched = _options_of(plan.source_config(SourceConfig())), _options_of(SourceConfig())
    if planned[SIXTEEN_BIT] == "auto":
        planned[SIXTEEN_BIT] = "scale" if sixteen_bit_note(plan, request) else "high-byte"
    for option, wanted in _options_of(request.source).items():
        if wanted not in (untouched[option], planned[option]):
            different.append(f"{option} {wanted} (the plan has {planned[option]})")
    if request.source.masks is not None and (plan.mask is None or plan.mask["kind"] != "folder"):
        have = "no masks" if plan.mask is None else f"masks in the {plan.mask['kind']} {plan.mask['source']}"
        different.append(f"--masks {display_url(request.source.masks)} (the plan has {have})")
    if request.tokenizer_url is not None:
        store, prefix = resolve_tokenizer(request.tokenizer_url, request.tokenizer_options)
        fingerprint = load_tokenizer(store, prefix).spec.fingerprint
        if fingerprint != plan.fingerprint:
            different.append(f"--tokenizer with fingerprint {fingerprint[:12]} (the plan has {plan.fingerprint[:12]})")
    if different:
        raise ConfigError(
            f"{display_url(request.out_url)} already holds a plan made with other options: {'; '.join(different)}. "
            "Leave these options out to continue it, or choose another output"
        )


def check_fit_options(given: OwnFitOptions, url: str, spec: TokenizerSpec, statistics: dict[str, Any]) -> None:
    """Raise ConfigError if options of a fit contradict the tokenizer at `url`, which takes the place of a fit."""
    different = [f"{option} {wanted} (it has {have})" for option, wanted, have in _fitted_otherwise(given, spec, statistics)]
    if different:
        raise ConfigError(
            f"--tokenizer {display_url(url)} was made with other options: {'; '.join(different)}. Leave these options out, or --tokenizer"
        )


def _fitted_otherwise(given: OwnFitOptions, spec: TokenizerSpec, statistics: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the options of a fit that a tokenizer contradicts: name, wanted value, and that of the tokenizer.

    None stands for what a tokenizer does not have or tell: published ones have no patch, and are taken with any.
    """
    fitted = statistics.get("fit", {})
    other_kind = f"--kind {spec.family}" if spec.family in OwnFitOptions.kinds else None
    return [
        (option, wanted, have)
        for option, wanted, have in (
            ("--kind", given.kind, spec.family),
            ("--size", given.size, spec.preprocess.size),
            ("--levels", given.levels, spec.layout.ids_per_site),
            ("--patch", given.patch, spec.config.get("patch", other_kind)),
            ("--site", given.site, spec.config.get("site", other_kind)),
            ("--beam", given.beam, spec.config.get("beam", 1)),
            ("--codes", given.codes, fitted.get("codes")),
            ("--seed", given.seed, fitted.get("seed")),
        )
        if wanted is not None and have is not None and wanted != have
    ]


def with_absolute_masks(request: TokenizeRequest) -> TokenizeRequest:
    """Return the request with the folder of masks as every process finds it. Raises SourceError if it is not there."""
    if request.source.masks is None:
        return request
    _, store = find_masks(source_root(request.source_url, request.source), request.source.masks)
    return replace(request, source=replace(request.source, masks=absolute_url(store.location)))


def sixteen_bit_note(plan: Plan, request: TokenizeRequest) -> str | None:
    """Return what a person should know who asks to scale 16-bit images where planning saw none; None in all other cases.

    The request does not contradict such a plan. Plans by older rules looked for none.
    """
    planned = plan.source_config(SourceConfig())
    if request.source.image_rules.sixteen_bit != "scale" or planned.image_rules.sixteen_bit != "auto" or planned.rules < 3:
        return None
    return (
        f"planning saw no 16-bit image, so {SIXTEEN_BIT} scale changes nothing here: of one that comes all the same the plan keeps the "
        "high byte, and counts it if it becomes dark. Choose another output to have it scaled"
    )


def _options_of(config: SourceConfig) -> dict[str, Any]:
    """Return the planned source options by the names that people give them."""
    values = {name: value for name, value in asdict(config).items() if name in SHAPING_FIELDS}
    values |= values.pop("image_rules") | values.pop("mask_rules")
    del values["rules"]
    return {"--key" if name == "tar_key" else f"--{name.replace('_', '-')}": value for name, value in values.items()}


def check_source(store: Store, chain: list[Plan], request: TokenizeRequest) -> None:
    """Raise SourceError if no planned input is at the source: the path is wrong, the source moved, or its disk is not mounted.

    A missing input is a permanent failure, so a wrong path would fill the quarantine. Checks only a few inputs, and only if the path is new
    or work is left.
    """
    first = chain[0]
    source = source_root(request.source_url, request.source)
    if load_pointer(store) is not None and readable_text(source.root if source.is_local else source.url) == first.source["root"]:
        return
    rows = [row for row in read_shard_rows(store, first, first.first_shard) if row.kind != "absent"][:PROBED_ROWS]
    if rows and not any(is_absolute(row.path) or _is_there(source, row.path) for row in rows):
        raise SourceError(
            f"{source.url}: none of {len(rows)} planned inputs exists there, such as {readable_text(rows[0].path)}. {store.url} was "
            f"made from {first.source['url']}. Give the present place of these inputs, or choose another output"
        )
    masks = mask_store(source, first.source_config(request.source).masks)
    paths = [row.mask_path for row in rows if row.mask_path is not None]
    if masks is not None and paths and not any(_is_there(masks, path) for path in paths):
        raise SourceError(
            f"{masks.url}: none of {len(paths)} planned masks exists there, such as {readable_text(paths[0])}. Give their present "
            "place with --masks, or choose another output"
        )


def _is_there(source: Store, path: str) -> bool:
    try:
        return source.info(path) is not None
    except UnreadableObjectError:  # the object exists; the run decides what to do with it
        return True
