"""One run of the main job: open or make the plan, run what is left, audit, write the manifest. The composition root of `tokenize`."""

from __future__ import annotations

import os
import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from pipeline.accounting import Survey, survey_plan
from pipeline.audit import close_generation
from pipeline.canonical import sha256_hex
from pipeline.config import FitConfig, PlanConfig, RunConfig, SourceConfig
from pipeline.context import TOKENIZER_FOLDER
from pipeline.errors import FingerprintMismatchError, IncompleteError, LiveRunError, MissingObjectError, PlanError, TooManyBadInputsError
from pipeline.fitting import fit_tokenizer
from pipeline.heartbeat import Heartbeat, live_runs, refuse_beside_live_run
from pipeline.plan import Listing, Plan, PlanRequest, load_chain, load_plan, write_plan
from pipeline.retry import plan_retry
from pipeline.runners.base import JobSpec, Runner, ShardSummary
from pipeline.runners.local import LocalRunner
from pipeline.shards.codecs import get_codec
from pipeline.shards.manifest import Manifest, load_manifest, load_pointer
from pipeline.shards.spec import TokenizerSpec
from pipeline.sources import ImageSource, open_source, source_root
from pipeline.storage import Store, display_url
from pipeline.tokenizers.base import Tokenizer, describe_tokenizer
from pipeline.tokenizers.directory import load_statistics, load_tokenizer, resolve_tokenizer, save_tokenizer

__all__ = ["Conversion", "Outcome", "Reporter", "TokenizeRequest", "finish_chain", "source_record"]


class Reporter(Protocol):
    """Where a run tells people what it does."""

    def say(self, message: str) -> None:
        """Print one line."""

    def begin(self, planned: int | None, done: int) -> None:
        """The work starts: inputs planned (None while tars are uncounted) and already done."""

    def advance(self, seen: int, bytes_in: int, quarantined: int) -> None:
        """Totals of this run so far, shards in flight included."""

    def end(self) -> None:
        """The work is over, for whatever reason."""


@dataclass(frozen=True, kw_only=True)
class TokenizeRequest:
    """What `tokenize` was asked to do."""

    source_url: str
    out_url: str
    tokenizer_url: str | None = None
    fit: FitConfig = field(default_factory=FitConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    run: RunConfig
    out_options: dict[str, Any] = field(default_factory=dict)
    card: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: a complete dataset, and what this run added to it."""

    manifest: Manifest
    already_complete: bool
    images: int
    seconds: float


@dataclass(slots=True)
class _Tally:
    """Counts of this run: what was committed, and what the shards in flight have done."""

    inputs: int = 0
    bytes_in: int = 0
    quarantined: int = 0
    shards: int = 0
    in_flight: dict[int, list[int]] = field(default_factory=dict)

    def totals(self) -> tuple[int, int, int]:
        """Return inputs, bytes and quarantined with those in flight."""
        flying = [sum(column) for column in zip(*self.in_flight.values(), strict=True)] or [0, 0, 0]
        return self.inputs + flying[0], self.bytes_in + flying[1], self.quarantined + flying[2]


class Conversion:
    """Runs one request against one dataset root."""

    def __init__(self, request: TokenizeRequest, reporter: Reporter, runner: Runner | None = None) -> None:
        get_codec(request.plan.codec)  # an unknown name must not cost a listing
        self._request = request
        self._reporter = reporter
        self._runner = runner or LocalRunner(request.run)
        self._store = Store(request.out_url, storage_options=request.out_options, retry=request.run.retry)

    def run(self) -> Outcome:
        """Continue or start; return when the manifest is written.

        Raises IncompleteError, TooManyBadInputsError, LiveRunError and what the parts raise.
        """
        request, store = self._request, self._store
        self._refuse_second_driver()
        chain = load_chain(store)
        if not chain:
            chain = [self._make_plan()]
        else:
            check_request(chain, request)
            self._reporter.say(f"continuing plan {chain[-1].plan_id[:12]} of {store.url} ({chain[-1].shards} shards)")
        return finish_chain(store, chain, request, self._runner, self._reporter)

    def _refuse_second_driver(self) -> None:
        if self._request.run.join:
            return
        for record in live_runs(self._store):
            raise LiveRunError(
                f"{self._store.url}: another run is at work on it ({record.describe(time.time())}). "
                "Wait for it, stop it, or add --join to share its work"
            )

    def _make_plan(self) -> Plan:
        request, say = self._request, self._reporter.say
        source = open_source(request.source_url, request.source)
        sample = 0 if request.tokenizer_url else request.fit.sample
        with Listing(
            source.list_rows(),
            order_seed=request.plan.order_seed,
            keep_order=source.ordered,
            sample=sample,
            sample_seed=request.fit.seed,
        ) as listing:
            matched = source.summary.lines()
            for line in matched:
                say(line)
            classes: tuple[int | str, ...] = ()
            if request.tokenizer_url:
                tokenizer, statistics, classes = adopt_tokenizer(request.tokenizer_url, request.out_options)
                say(f"tokenizer of {request.tokenizer_url}: {describe_tokenizer(tokenizer)}")
                if classes:
                    say(f"its class table of {len(classes)} classes is kept, so labels agree")
            else:
                say(f"no --tokenizer given: fitting {'one' if source.ordered else f'one on {len(listing.sample):,} inputs'} …")
                fitted = fit_tokenizer(source, listing.sample, request.fit)
                tokenizer, statistics = fitted.tokenizer, fitted.statistics
                say(f"fitted {describe_tokenizer(tokenizer)}; kept in {self._store.url}/{TOKENIZER_FOLDER}")
                for note in fitted.notes:
                    say(f"note: {note}")
            objects = save_tokenizer(tokenizer, self._store, TOKENIZER_FOLDER, statistics)
            plan_request = PlanRequest(
                fingerprint=tokenizer.spec.fingerprint,
                config=request.plan,
                source=source_record(source, request.source_url, request.source),
                tokenizer_objects=objects,
                card={"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "source": source.root, **request.card},
                tokenizer_json=self._store.read(f"{TOKENIZER_FOLDER}/tokenizer.json").decode(),
                classes=classes,
                label_type=source.summary.label_type,
                meta_types=dict(source.summary.meta_types),
                matched=tuple(matched),
            )
            plan = write_plan(self._store, listing, plan_request, request.source.tars_per_shard)
        say(f"plan {plan.plan_id[:12]}: {plan.shards} shards of about {plan.shard_rows:,} inputs")
        return plan


def adopt_tokenizer(url: str, storage_options: dict[str, Any]) -> tuple[Tokenizer, dict[str, Any], tuple[int | str, ...]]:
    """Return tokenizer, statistics and class table of a tokenizer directory (no classes) or of another dataset."""
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
            raise FingerprintMismatchError(
                f"{store.url}: its tokenizer folder and its manifest disagree. Run `tokenshards verify {store.url}`"
            )
        classes = manifest.classes
    return tokenizer, load_statistics(store, prefix), classes


def source_record(source: ImageSource, asked_url: str, config: SourceConfig) -> dict[str, Any]:
    """Return what the plan records of a source; nothing in it is a secret."""
    options = {name: value for name, value in asdict(config).items() if name != "storage_options"}
    url = display_url(asked_url) if "://" in asked_url else os.path.abspath(asked_url)  # `repair` may run from another folder
    return {"url": url, "root": source.root, "kind": source.kind, "options": {**options, "meta": list(config.meta)}}


def check_request(chain: list[Plan], request: TokenizeRequest) -> None:
    """Raise PlanError when the request asks for something else than the plan in the bucket."""
    plan, asked = chain[0], request.plan
    different = [
        f"{option} {wanted} (the plan has {have})"
        for option, wanted, have in (
            ("--codec", asked.codec if asked.codec != PlanConfig().codec else plan.codec, plan.codec),
            ("--shard-rows", asked.shard_rows if asked.shard_rows is not None else plan.shard_rows, plan.shard_rows),
        )
        if wanted != have
    ]
    if request.tokenizer_url is not None:
        store, prefix = resolve_tokenizer(request.tokenizer_url, request.out_options)
        fingerprint = load_tokenizer(store, prefix).spec.fingerprint
        if fingerprint != plan.fingerprint:
            different.append(f"--tokenizer with fingerprint {fingerprint[:12]} (the plan has {plan.fingerprint[:12]})")
    if different:
        raise PlanError(
            f"{request.out_url} already holds a plan made with other options: {'; '.join(different)}. "
            "Leave these options out to continue it, or choose another output"
        )


def finish_chain(store: Store, chain: list[Plan], request: TokenizeRequest, runner: Runner, reporter: Reporter) -> Outcome:
    """Run and close every generation that has no manifest yet, oldest first."""
    pointer = load_pointer(store)
    manifest = None if pointer is None else load_manifest(store, pointer)
    images, seconds, worked = 0, 0.0, False
    for plan in chain:
        if manifest is None or manifest.generation < plan.generation:
            run = _PlanRun(store, plan, request, runner, reporter)
            manifest = run.run(manifest)
            images, seconds, worked = images + run.tally.inputs, seconds + run.seconds, True
    if manifest is None:
        raise PlanError(f"{store.url}: there is no plan to finish. Run `tokenshards tokenize SRC {store.url}`")
    return Outcome(manifest=manifest, already_complete=not worked, images=images, seconds=seconds)


def ensure_tokenizer(store: Store, plan: Plan) -> TokenizerSpec:
    """Return the spec of the stored tokenizer, which must be the planned one, byte for byte."""
    for path, sha256 in plan.tokenizer_objects.items():
        try:
            seen = sha256_hex(store.read(path))
        except MissingObjectError:
            raise PlanError(f"{store.url}/{path} is missing. Run `tokenshards repair {store.url}` to see what can be restored") from None
        if seen != sha256:
            raise PlanError(
                f"{store.url}/{path} is not what the plan names (sha256 {seen[:12]}…, expected {sha256[:12]}…). "
                f"Run `tokenshards repair {store.url}` to see what can be restored"
            )
    return load_tokenizer(store, TOKENIZER_FOLDER).spec


def check_bad_share(survey: Survey, max_bad: float) -> None:
    """Raise TooManyBadInputsError when more than `max_bad` of the planned inputs failed for good; a retry may fail as it likes."""
    if survey.plan.generation == 1 and survey.quarantined > max_bad * survey.planned:
        raise _too_many(survey.quarantined, survey.planned, max_bad)


def _too_many(quarantined: int, planned: int, max_bad: float) -> TooManyBadInputsError:
    return TooManyBadInputsError(
        f"{quarantined:,} of {planned:,} inputs failed for good, which is more than --max-bad {max_bad:g}. "
        "The quarantine/ files name each with its reason. To accept them, run the same command with a larger --max-bad"
    )


class _PlanRun:
    """Runs the shards of one plan that are not done; as the runner's listener it counts, reports, logs, and stops a hopeless run."""

    def __init__(self, store: Store, plan: Plan, request: TokenizeRequest, runner: Runner, reporter: Reporter) -> None:
        self._store = store
        self._plan = plan
        self._request = request
        self._runner = runner
        self._reporter = reporter
        self._quarantined_before = 0
        self._heartbeat = Heartbeat(store, plan.plan_id, self._counters)
        self.tally = _Tally()
        self.seconds = 0.0

    def run(self, parent: Manifest | None) -> Manifest:
        """Return the manifest of this generation once every shard is committed and the accounts balance."""
        store, plan = self._store, self._plan
        spec = ensure_tokenizer(store, plan)
        survey = survey_plan(store, plan, spec)
        for problem in survey.problems:
            self._reporter.say(f"{problem.object} is {problem.kind} ({problem.detail}); its shard is done again")
        started = time.monotonic()
        with self._heartbeat:
            if survey.to_do:
                survey = self._work(survey, spec)
            check_bad_share(survey, self._request.run.max_bad)
            pointer = load_pointer(store)
            if pointer is not None and int(pointer["generation"]) >= plan.generation:  # a driver that joined was faster
                return load_manifest(store, pointer)
            manifest = close_generation(store, plan, survey, spec, parent)
        self.seconds = time.monotonic() - started
        return manifest

    def _work(self, survey: Survey, spec: TokenizerSpec) -> Survey:
        plan, request = self._plan, self._request
        todo = survey.to_do
        if request.run.join:  # two drivers that start at the same end would do the same work
            random.Random(self._heartbeat.record.uuid).shuffle(todo)
        self._quarantined_before = survey.quarantined
        self._reporter.begin(None if plan.tars_planned else plan.images_planned, survey.inputs_seen)
        job = JobSpec(
            out_url=request.out_url,
            out_options=request.out_options,
            source_url=source_root(request.source_url, request.source).location,
            source_config=plan.source_config(request.source.storage_options),
            plan_id=plan.plan_id,
            retry=self._store.retry,
            join=request.run.join,
        )
        try:
            failed = self._runner.run(job, todo, self)
        finally:
            self._reporter.end()
        survey = survey_plan(self._store, plan, spec)
        if failed and survey.to_do:
            shard, message = next(iter(failed.items()))
            raise IncompleteError(
                f"{len(survey.to_do)} of {plan.shards} shards are not done; the last error of shard {shard}: {message}\n"
                "Nothing was lost and nothing was quarantined for this. Run the same command again: it continues"
            )
        return survey

    def started(self, shard: int) -> None:
        """Forget what an earlier attempt at this shard had done."""
        self.tally.in_flight[shard] = [0, 0, 0]

    def progressed(self, shard: int, inputs: int, bytes_in: int, quarantined: int) -> None:
        """Add to a shard in flight."""
        counts = self.tally.in_flight[shard]
        for index, value in enumerate((inputs, bytes_in, quarantined)):
            counts[index] += value

    def committed(self, shard: int, summary: ShardSummary) -> None:
        """Move a shard from in flight to done."""
        tally = self.tally
        tally.in_flight.pop(shard, None)
        tally.inputs += summary.inputs_seen
        tally.bytes_in += summary.bytes_in
        tally.quarantined += summary.quarantined
        tally.shards += 1

    def noted(self, message: str, **details: Any) -> None:
        """Tell people and the run's log."""
        self._reporter.say(message)
        self._heartbeat.log(message, **details)

    def tick(self) -> None:
        """Report; raise TooManyBadInputsError as soon as the limit is passed for certain."""
        inputs, bytes_in, quarantined = self.tally.totals()
        self._reporter.advance(inputs, bytes_in, quarantined)
        bad = self._quarantined_before + quarantined
        # Tars are not counted before they are read, so their share is judged at the end.
        judged = self._plan.generation == 1 and not self._plan.tars_planned
        if judged and bad > self._request.run.max_bad * self._plan.images_planned:
            raise _too_many(bad, self._plan.images_planned, self._request.run.max_bad)

    def _counters(self) -> dict[str, Any]:
        inputs, bytes_in, quarantined = self.tally.totals()
        return {"images_seen": inputs, "bytes_in": bytes_in, "images_quarantined": quarantined, "shards_committed": self.tally.shards}


def retry_failed(
    out_url: str, source_url: str | None, run: RunConfig, options: dict[str, Any], reporter: Reporter, runner: Runner | None = None
) -> Outcome | None:
    """Try quarantined inputs again as a new generation; None when nothing stands in quarantine."""
    store = Store(out_url, storage_options=options, retry=run.retry)
    refuse_beside_live_run(store, "retry failed inputs")
    first = load_plan(store)
    if first is None:
        raise MissingObjectError(store.url, "no dataset is here; expected the OUT folder of `tokenshards tokenize`")
    config = first.source_config(options)
    where = source_url or str(first.source["url"])
    planned = plan_retry(store, source_root(where, config), config)
    if planned is None:
        return None
    plan, inputs = planned
    reporter.say(f"generation {plan.generation}: {inputs:,} quarantined inputs are tried again")
    request = TokenizeRequest(source_url=where, out_url=out_url, source=config, run=run, out_options=options)
    return finish_chain(store, load_chain(store), request, runner or LocalRunner(run), reporter)
