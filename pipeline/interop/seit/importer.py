"""`import seit`: convert a split in SeiT's release layout to a complete dataset, resumable and exactly once like `tokenize`.

The import first reads the whole split, before it writes anything: it checks every byte and counts the ids for the statistics. Images keep
their order, and a plan row is the range of images of one shard. A run then reads the stream once more and writes the open shards; skipping
the done ones only costs their decompression, a few seconds for ImageNet.

Shapes: K codes.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.config import PlanConfig, RunConfig, SourceConfig
from tokenshards.pipeline.conversion.codec_model import fit_told_codec, keep_model, most_rows
from tokenshards.pipeline.conversion.request import Outcome, Reporter, TokenizeRequest
from tokenshards.pipeline.conversion.tokenize import finish_chain
from tokenshards.pipeline.errors import ConfigError, LiveRunError, TooManyBadInputsError
from tokenshards.pipeline.interop.seit.shard_job import SeitRunner, SeitSource
from tokenshards.pipeline.interop.seit.tables import read_class_names, read_codebook, read_synonyms
from tokenshards.pipeline.interop.seit.token_files import open_split
from tokenshards.pipeline.job.context import TOKENIZER_FOLDER
from tokenshards.pipeline.ledger.heartbeat import PLANNING, Heartbeat, refuse_beside_live_run, wins_planning
from tokenshards.pipeline.ledger.progress import RunProgress
from tokenshards.pipeline.planning.plan import Plan, load_chain, plan_version, read_shard_rows
from tokenshards.pipeline.planning.planner import Listing, PlanRequest, write_plan
from tokenshards.pipeline.records import PlanRow, TokenBatch
from tokenshards.pipeline.shards.codecs import check_codec, needs_model, same_codec
from tokenshards.pipeline.storage.store import Store, absolute_url, display_url
from tokenshards.pipeline.tokenizers.base import describe_tokenizer
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.published.seit_tokens import SeitTokens
from tokenshards.pipeline.words import counted

__all__ = ["SOURCE_KIND", "SYNONYMS_PATH", "SeitImportRequest", "import_seit", "parse_grid"]

SOURCE_KIND = "seit"
ROW_KIND = "tokens"
SYNONYMS_PATH = f"{TOKENIZER_FOLDER}/synonyms.json"
FAULTS_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class SeitImportRequest:
    """All settings of an `import seit`; files without a name here are searched in the folder of the split."""

    source_url: str
    out_url: str
    split: str = "train"
    grid: tuple[int, int] = (32, 32)
    """Rows and columns of the sites."""
    codebook: str | None = None
    labels: str | None = None
    synonyms: str | None = None
    classes: str | None = None
    """File with the names of the classes; without it the labels are the class indices."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    max_bad: float = 0.01
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    """Storage options of the dataset."""
    source_options: dict[str, Any] = field(default_factory=dict, repr=False)
    card: dict[str, str] = field(default_factory=dict)


def import_seit(request: SeitImportRequest, reporter: Reporter) -> Outcome:
    """Import a split, or continue a stopped import; return when the manifest is written.

    An image whose bytes do not decode to ids of the grid and the vocabulary is quarantined, as `tokenize` quarantines a broken image: one
    bad image among a million must not stop the others. A fault in the relation of images, offsets and labels raises SourceError, and
    nothing is written. Raises ConfigError for a codebook, synonym or class file that does not match and if OUT holds something else,
    TooManyBadInputsError above `max_bad`, LiveRunError beside another run, IncompleteError if a store fails.
    """
    check_codec(request.plan.codec)  # fail for an unknown name before a long read
    store = Store(request.out_url, storage_options=request.options)
    refuse_beside_live_run(store, "import into it")
    source = _open(request)
    chain = load_chain(store)
    if not chain:
        with Heartbeat(store, PLANNING, dict) as heartbeat:
            if not wins_planning(store, heartbeat.record):
                raise LiveRunError(f"{store.url}: another run makes its plan. Wait for that run, then run this command again")
            chain = load_chain(store) or [_make_plan(store, source, request, reporter)]
    _check_same(store, chain[0], source, request)
    run = RunConfig(workers=1, max_bad=request.max_bad)
    work = TokenizeRequest(source_url=request.source_url, out_url=request.out_url, run=run, out_options=request.options)
    return finish_chain(store, chain, work, SeitRunner(store, source), reporter)


def parse_grid(text: str) -> tuple[int, int]:
    """Return rows and columns of a grid such as `32x32`; raises ConfigError."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if match is None:
        raise ConfigError(f"--grid is {text!r}; expected rows and columns of the sites, such as 32x32")
    return int(match[1]), int(match[2])


def _open(request: SeitImportRequest) -> SeitSource:
    store = Store(request.source_url, storage_options=request.source_options)
    split = open_split(store, request.split, request.labels)
    codebook_KD = read_codebook(store, request.codebook)
    classes = int(split.labels_N.max()) + 1
    return SeitSource(
        split=split,
        tokenizer=SeitTokens(codebook_KD, request.grid),
        synonyms=read_synonyms(store, request.synonyms, len(codebook_KD)),
        classes=read_class_names(request.classes, request.source_options, classes) if request.classes else tuple(range(classes)),
    )


def _check_same(store: Store, plan: Plan, source: SeitSource, request: SeitImportRequest) -> None:
    """Raise ConfigError if OUT holds something else than this import; an option left at its default never contradicts."""
    if plan.source["kind"] != SOURCE_KIND:
        made = f"{store.url} was made by `tokenize` from {plan.source['url']}"
        raise ConfigError(f"{made}; expected an import of SeiT. Choose another output")
    planned = read_shard_rows(store, plan, plan.first_shard)[0]
    spec, default, asked = source.tokenizer.spec, PlanConfig(), request.plan.codec
    different = [
        f"{name} {wanted} (the plan has {have})"
        for name, wanted, have in (
            ("--split", source.split.name, plan.source["split"]),
            ("--grid", spec.layout.grid, plan.spec.layout.grid),
            ("codebook", spec.fingerprint[:12], plan.fingerprint[:12]),
            ("tokens, index, labels, classes or synonyms of version", source.version, planned.version),
            ("--shard-rows", request.plan.shard_rows or plan.shard_rows, plan.shard_rows),
            ("--codec", plan.codec if asked == default.codec or same_codec(asked, plan.codec) else asked, plan.codec),
        )
        if wanted != have
    ]
    if different:
        raise ConfigError(
            f"{store.url} holds an import of something else: {'; '.join(different)}. Choose another output, or give its options"
        )


def _make_plan(store: Store, source: SeitSource, request: SeitImportRequest, reporter: Reporter) -> Plan:
    split, tokenizer = source.split, source.tokenizer
    matched = (
        f"{counted(len(split), 'image')} of split {split.name} in {split.uri} ({split.data.size / 1e6:,.1f} MB), "
        f"{counted(len(source.classes), 'class')}",
        f"{describe_tokenizer(tokenizer)}{'' if source.synonyms is None else ', with its synonym table'}",
    )
    for line in matched:
        reporter.say(line)
    config = request.plan
    survey = _survey(source, request.max_bad, most_rows(tokenizer.spec) if needs_model(config.codec) else 0, reporter)
    objects = save_tokenizer(tokenizer, store, TOKENIZER_FOLDER, tokenizer.statistics(survey.counts_K))
    if needs_model(config.codec):
        codec = fit_told_codec(survey.sample, tokenizer, store, len(split), reporter.say)
        config, objects = replace(config, codec=codec.name), objects | keep_model(codec, store)
    if source.synonyms is not None:
        store.write(SYNONYMS_PATH, source.synonyms)
        objects[SYNONYMS_PATH] = sha256_hex(source.synonyms)
    where = absolute_url(request.source_url)
    rows_per_shard = request.plan.rows_per_shard(len(split))
    ranges = (_range_row(source, start, min(start + rows_per_shard, len(split))) for start in range(0, len(split), rows_per_shard))
    with Listing(ranges, order_seed=request.plan.order_seed, keep_order=True, sample=0, sample_seed=0) as listing:
        plan_request = PlanRequest(
            fingerprint=tokenizer.spec.fingerprint,
            config=config,
            source={
                "url": display_url(where),
                "root": split.store.place("").rstrip("/"),
                "kind": SOURCE_KIND,
                "options": SourceConfig().planned(),
                "split": split.name,
                "data": split.data.path,
            },
            tokenizer_objects=objects,
            tokenizer_json=store.read(f"{TOKENIZER_FOLDER}/tokenizer.json").decode(),
            classes=source.classes,
            card={"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "source": split.uri, **request.card},
            label_type="string" if request.classes else "int64",
            matched=matched,
            format_version=plan_version(SourceConfig(), newer_inputs=False, codec=config.codec),
        )
        plan = write_plan(store, listing, plan_request, tars_per_shard=1)
    reporter.say(f"plan {plan.plan_id[:12]}: {counted(plan.shards, 'shard')} of {counted(plan.shard_rows, 'image')}")
    return plan


def _range_row(source: SeitSource, start: int, stop: int) -> PlanRow:
    """Return the plan row of images [start, stop). Its path is not an object, so no code can mistake the token file for an image."""
    split = source.split
    name = f"{split.data.path}#{start}-{stop}"
    return PlanRow(
        kind=ROW_KIND,
        sample_id=name,
        path=name,
        size=split.data.size,
        version=source.version,
        inputs=stop - start,
        row_start=start,
        row_stop=stop,
    )


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a pass through the whole stream found."""

    counts_K: npt.NDArray[np.int64]
    """How often each id occurs."""
    sample: TokenBatch
    """Tokens of images from all parts of the split."""


def _survey(source: SeitSource, max_bad: float, sample: int, reporter: Reporter) -> _Survey:
    """Read the whole stream, count its ids, and keep the tokens of `sample` images; raises SourceError or TooManyBadInputsError."""
    split = source.split
    counts_K = np.zeros(source.codes, np.int64)
    # Rows of a split are often sorted by class, so the first ones would not do.
    wanted_N = np.zeros(len(split), bool)
    wanted_N[np.random.default_rng(0).permutation(len(split))[:sample]] = True
    kept = [np.zeros((0, source.sites), source.tokenizer.spec.id_dtype)]
    shown: list[str] = []
    seen = size = bad = 0
    started = time.monotonic()
    reporter.begin(len(split), 0)
    try:
        with split.images() as images:
            for decoded in source.decoded(images, 0, len(split)):
                counts_K += np.bincount(decoded.ids_GL.reshape(-1), minlength=source.codes)
                kept.append(decoded.ids_GL[wanted_N[decoded.rows_G]].astype(source.tokenizer.spec.id_dtype))
                for row, image in decoded.faults.items():
                    if len(shown) < FAULTS_SHOWN:
                        shown.append(f"image {row:,}: {source.explain(image)}")
                seen, size, bad = seen + decoded.images, size + decoded.size, bad + len(decoded.faults)
                reporter.advance(
                    RunProgress(
                        images_planned=len(split),
                        images_seen=seen,
                        bytes_in=size,
                        images_quarantined=bad,
                        work_seconds=time.monotonic() - started,
                    )
                )
            images.finish()
    finally:
        reporter.end()
    more = f"; and {bad - len(shown):,} more" if bad > len(shown) else ""
    if bad == len(split) or bad > max_bad * len(split):
        raise TooManyBadInputsError(
            f"{split.uri}: {bad:,} of {len(split):,} images do not decode to {source.sites:,} ids below {source.codes}, which is more than "
            f"--max-bad {max_bad:g}: {'; '.join(shown)}{more}. Check --grid and --codebook; nothing was written"
        )
    if bad:
        reporter.say(
            f"note: {counted(bad, 'image')} "
            f"of {split.uri} {'is' if bad == 1 else 'are'} damaged and will be quarantined: {'; '.join(shown)}{more}"
        )
    return _Survey(counts_K, TokenBatch(np.concatenate(kept)[:, :, None]))
