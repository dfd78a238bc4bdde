"""The composition root of `tokenize`: open or make the plan, run the open shards, audit, write the manifest."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from tokenshards.pipeline.config import RunConfig, SourceConfig
from tokenshards.pipeline.conversion.codec_model import fit_told_codec, keep_model, sampled_tokens
from tokenshards.pipeline.conversion.fit import fit_own_tokenizer
from tokenshards.pipeline.conversion.fit_kinds import told_fit
from tokenshards.pipeline.conversion.request import (
    Outcome,
    Reporter,
    TokenizeRequest,
    check_fit_options,
    check_request,
    check_source,
    sixteen_bit_note,
    with_absolute_masks,
)
from tokenshards.pipeline.conversion.resume import PlanRun
from tokenshards.pipeline.conversion.understand import understand
from tokenshards.pipeline.errors import (
    ConfigError,
    FingerprintMismatchError,
    IncompleteError,
    LiveRunError,
    NotFoundError,
    PlanError,
)
from tokenshards.pipeline.job.context import TOKENIZER_FOLDER
from tokenshards.pipeline.ledger.heartbeat import PLANNING, Heartbeat, live_runs, refuse_beside_live_run, wins_planning
from tokenshards.pipeline.planning.nesting import refuse_nesting, rows_outside
from tokenshards.pipeline.planning.plan import Plan, load_chain, load_plan, plan_version
from tokenshards.pipeline.planning.planner import Listing, PlanRequest, write_plan
from tokenshards.pipeline.planning.retry_plan import plan_retry
from tokenshards.pipeline.runners.base import Runner
from tokenshards.pipeline.runners.local import LocalRunner
from tokenshards.pipeline.shards.codecs import check_codec, needs_model
from tokenshards.pipeline.shards.manifest import load_manifest, load_pointer
from tokenshards.pipeline.sources import ImageSource, open_source, source_root
from tokenshards.pipeline.sources.base import readable_text
from tokenshards.pipeline.sources.labels.values import LabelType, integer_in
from tokenshards.pipeline.sources.lfs import doubt_lfs_pointers
from tokenshards.pipeline.sources.mask_values import plan_of_masks, settle_masks
from tokenshards.pipeline.sources.pixel_depth import settle_sixteen_bit
from tokenshards.pipeline.sources.summary import SourceSummary
from tokenshards.pipeline.storage.store import Store, absolute_url, display_url
from tokenshards.pipeline.tokenizers.base import Tokenizer, describe_tokenizer
from tokenshards.pipeline.tokenizers.directory import load_statistics, load_tokenizer, resolve_tokenizer, save_tokenizer
from tokenshards.pipeline.view_policy import ViewPolicy
from tokenshards.pipeline.words import counted

__all__ = ["Conversion", "Outcome", "Reporter", "TokenizeRequest", "finish_chain", "source_record"]

PLAN_POLL_SECONDS = 1.0
RETRYING = "retry failed inputs"


class Conversion:
    """Runs one request against one dataset root."""

    def __init__(self, request: TokenizeRequest, reporter: Reporter, runner: Runner | None = None) -> None:
        check_codec(request.plan.codec)  # fail for an unknown name before a long listing
        self._request = request
        self._reporter = reporter
        self._runner = runner or LocalRunner(request.run)
        self._understood: dict[str, Any] | None = None
        self._store = Store(request.out_url, storage_options=request.out_options, retry=request.run.retry)

    def run(self) -> Outcome:
        """Start or continue the conversion; return when the manifest is written.

        Raises DoubtError where the input is in grave doubt, before any plan is made, IncompleteError, TooManyBadInputsError, LiveRunError,
        and the errors of planning and storage.
        """
        self._request = request = with_absolute_masks(self._request)
        store = self._store
        self._refuse_second_driver()
        chain = load_chain(store)
        if not chain:
            refuse_nesting(request.source_url, request.source, store)
            chain = self._plan_once()
        check_request(chain[0], request)
        if note := sixteen_bit_note(chain[0], request):
            self._reporter.say(f"note: {note}")
        check_source(store, chain, request)
        return replace(finish_chain(store, chain, request, self._runner, self._reporter), understood=self._understood)

    def _refuse_second_driver(self) -> None:
        if self._request.run.join:
            return
        for record in live_runs(self._store):
            raise LiveRunError(
                f"{self._store.url}: another run works on it ({record.describe(time.time())}). "
                "Wait for that run, stop it, or add --join to share its work"
            )

    def _plan_once(self) -> list[Plan]:
        """Make the plan, or wait for the driver that makes it: two planning drivers would overwrite each other's tokenizer."""
        store, source = self._store, open_source(self._request.source_url, self._request.source)
        while True:
            with Heartbeat(store, PLANNING, dict) as heartbeat:
                if wins_planning(store, heartbeat.record):
                    return load_chain(store) or [self._make_plan(source)]
            self._refuse_second_driver()
            self._reporter.say("another run makes the plan; waiting for it")
            while live_runs(store):
                if chain := load_chain(store):
                    return chain
                time.sleep(PLAN_POLL_SECONDS)

    def _make_plan(self, source: ImageSource) -> Plan:
        request, say = self._request, self._reporter.say
        sample = 0 if request.tokenizer_url and not needs_model(request.plan.codec) else request.fit.sample
        with Listing(
            rows_outside(source.list_rows(), source.store, self._store),
            order_seed=request.plan.order_seed,
            keep_order=source.ordered,
            sample=sample,
            sample_seed=request.fit.seed,
            mask_files=source.config.takes_masks and not source.ordered,
        ) as listing:
            settle_sixteen_bit(source, listing.sample or listing.spread)
            settle_masks(source, listing.sample or listing.spread)
            doubt_lfs_pointers(source, listing.sample or listing.spread)
            classes: tuple[int | str, ...] = ()
            if request.tokenizer_url:
                tokenizer, statistics, classes = adopt_tokenizer(request.tokenizer_url, request.tokenizer_options)
                check_fit_options(request.fit_options, request.tokenizer_url, tokenizer.spec, statistics)
            matched = understand(source, request.source, say, classes)
            self._understood = source.summary.to_json()
            if request.tokenizer_url:
                say(f"tokenizer of {display_url(request.tokenizer_url)}: {describe_tokenizer(tokenizer)}")
                if classes:
                    say(f"the class table of that dataset is kept ({counted(len(classes), 'class')}), so labels agree")
            else:
                images = sum(row.inputs for row in listing.sample)
                # images of tars are counted only when read
                about = "" if source.ordered else f" on {counted(min(images, sample), 'image')}"
                say(told_fit(request.fit, about))
                fitted = fit_own_tokenizer(source, listing.sample, request.fit)
                tokenizer, statistics = fitted.tokenizer, fitted.statistics
                say(f"fitted {describe_tokenizer(tokenizer)}; kept in {self._store.url}/{TOKENIZER_FOLDER}")
                for note in fitted.notes:
                    say(f"note: {note}")
            if not classes:
                classes = source.summary.class_order
            mask = plan_of_masks(source, tokenizer.spec.preprocess.size)
            if mask is not None:
                say(f"masks: {mask['width']} x {mask['height']} pixels of {mask['dtype']}; {mask['ignore']:,} is a pixel without a class")
            objects = save_tokenizer(tokenizer, self._store, TOKENIZER_FOLDER, statistics)
            config = request.plan
            if needs_model(config.codec):
                rows = listing.spool.inputs * ViewPolicy.parse(config.views).count
                tokens = sampled_tokens(source, listing.sample, tokenizer)
                # images of tars are counted only when read
                codec = fit_told_codec(tokens, tokenizer, self._store, None if listing.spool.tars else rows, say)
                config, objects = replace(config, codec=codec.name), objects | keep_model(codec, self._store)
            plan_request = PlanRequest(
                fingerprint=tokenizer.spec.fingerprint,
                config=config,
                source=source_record(source, request.source_url),
                tokenizer_objects=objects,
                card={"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "source": readable_text(source.root), **request.card},
                tokenizer_json=self._store.read(f"{TOKENIZER_FOLDER}/tokenizer.json").decode(),
                classes=classes,
                label_type=common_label_type(classes, source.summary),
                meta_types=dict(source.summary.meta_types),
                matched=tuple(matched),
                mask=mask,
                format_version=plan_version(source.config, newer_inputs=source.summary.newer_inputs, codec=config.codec),
            )
            plan = write_plan(self._store, listing, plan_request, request.source.tars_per_shard)
        tars = request.source.tars_per_shard
        size = counted(tars, "tar") if plan.tars_planned else f"about {counted(-(-plan.images_planned // plan.shards), 'image')}"
        say(f"plan {plan.plan_id[:12]}: {counted(plan.shards, 'shard')} of {size}")
        return plan


def adopt_tokenizer(url: str, storage_options: dict[str, Any]) -> tuple[Tokenizer, dict[str, Any], tuple[int | str, ...]]:
    """Return tokenizer, statistics and class table of another dataset or of a tokenizer directory, which has no classes."""
    store, prefix = resolve_tokenizer(url, storage_options)
    tokenizer = load_tokenizer(store, prefix)
    classes: tuple[int | str, ...] = ()
    if prefix == TOKENIZER_FOLDER:
        pointer = load_pointer(store)
        if pointer is None:
            raise IncompleteError(
                f"{store.url} is not complete yet, so its class table is not known. Finish it with `tokenshards tokenize`, "
                f"or give only its tokenizer: --tokenizer {store.url}/{TOKENIZER_FOLDER}"
            )
        manifest = load_manifest(store, pointer)
        if manifest.fingerprint != tokenizer.spec.fingerprint:
            raise FingerprintMismatchError(f"{store.url}: tokenizer folder and manifest disagree. Run `tokenshards verify {store.url}`")
        classes = manifest.classes
    return tokenizer, load_statistics(store, prefix), classes


def common_label_type(classes: tuple[int | str, ...], summary: SourceSummary) -> LabelType | None:
    """Return the type for storing the labels of a source: the type of the given class table if there is one, else the source's own.

    So the integer 7 of a table and the folder `7` are one class. Raises ConfigError if the class table has integers and a label is not one.
    """
    if not classes or summary.label_type is None:
        return summary.label_type
    if any(isinstance(label, str) for label in classes):
        return "string"
    stray = next((label for label in summary.labels if integer_in(label) is None), None)
    if stray is not None:
        raise ConfigError(
            f"the label {stray!r} cannot join a class table of integers such as {classes[0]}: expected integers as labels. "
            "Choose them with --label, or give only the tokenizer: --tokenizer DATASET/tokenizer"
        )
    return "int64"


def source_record(source: ImageSource, asked_url: str) -> dict[str, Any]:
    """Return the record of a listed source for the plan, with the rules that the listing settled; it contains no secret."""
    return {
        "url": readable_text(display_url(absolute_url(asked_url))),  # `repair` may run from another folder
        "root": readable_text(source.root),
        "kind": source.kind,
        "options": source.config.planned(),
    }


def finish_chain(store: Store, chain: list[Plan], request: TokenizeRequest, runner: Runner, reporter: Reporter) -> Outcome:
    """Run and close every generation that has no manifest yet, oldest first."""
    pointer = load_pointer(store)
    manifest = None if pointer is None else load_manifest(store, pointer)
    images, seconds, usage = 0, 0.0, None
    for plan in chain:
        plan.refuse_newer()
        if manifest is None or manifest.generation < plan.generation:
            run = PlanRun(store, plan, request, runner, reporter)
            manifest = run.run(manifest)
            images, seconds, usage = images + run.tally.inputs, seconds + run.seconds, run.usage
    if manifest is None:
        raise PlanError(f"{store.url}: there is no plan to finish. Run `tokenshards tokenize SRC {store.url}`")
    return Outcome(manifest=manifest, already_complete=usage is None, images=images, seconds=seconds, usage=usage)


def retry_failed(
    out_url: str,
    source_url: str | None,
    run: RunConfig,
    options: dict[str, Any],
    reporter: Reporter,
    runner: Runner | None = None,
    reading: SourceConfig | None = None,
) -> Outcome | None:
    """Retry quarantined inputs as a new generation; return None if the quarantine is empty.

    `options` are the storage options of the dataset, and of its source too if `reading` is None.
    """
    store = Store(out_url, storage_options=options, retry=run.retry)
    refuse_beside_live_run(store, RETRYING)
    first = load_plan(store)
    if first is None:
        raise NotFoundError(store.url, "no dataset is here; expected the OUT folder of `tokenshards tokenize`")
    config = first.source_config(reading or SourceConfig(storage_options=options))
    where = source_url or str(first.source["url"])
    with Heartbeat(store, PLANNING, dict) as heartbeat:
        if not wins_planning(store, heartbeat.record):  # two planning drivers would overwrite each other's pointer
            refuse_beside_live_run(store, RETRYING, besides=heartbeat.record.uuid)
            raise LiveRunError(f"{store.url}: cannot {RETRYING}, because another run began at the same moment. Run the command again")
        planned = plan_retry(store, source_root(where, config), config)
    if planned is None:
        return None
    plan, inputs = planned
    reporter.say(f"generation {plan.generation}: retrying {counted(inputs, 'quarantined input')}")
    request = TokenizeRequest(source_url=where, out_url=out_url, source=config, run=run, out_options=options)
    return finish_chain(store, load_chain(store), request, runner or LocalRunner(run), reporter)
