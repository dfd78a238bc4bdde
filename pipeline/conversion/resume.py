"""One run over one plan: work on the open shards, then audit, then write the manifest."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.conversion.closing_notes import closing_notes
from tokenshards.pipeline.conversion.request import Reporter, TokenizeRequest
from tokenshards.pipeline.errors import (
    IncompleteError,
    MissingObjectError,
    PlanError,
    TooManyBadInputsError,
    TransientStorageError,
)
from tokenshards.pipeline.job.context import TOKENIZER_FOLDER
from tokenshards.pipeline.job.inputs import describe_unreadable
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary
from tokenshards.pipeline.ledger.closing import close_generation, max_bad_for
from tokenshards.pipeline.ledger.dataset_card import CARD_PATH, has_own_card, write_card
from tokenshards.pipeline.ledger.failure_examples import failure_examples
from tokenshards.pipeline.ledger.heartbeat import Heartbeat, live_runs
from tokenshards.pipeline.ledger.progress import RunProgress
from tokenshards.pipeline.ledger.replaced import remove_replaced
from tokenshards.pipeline.ledger.survey import Survey, survey_plan
from tokenshards.pipeline.planning.plan import Plan
from tokenshards.pipeline.runners.base import Runner
from tokenshards.pipeline.runners.stage_usage import RunUsage
from tokenshards.pipeline.shards.commit import ObjectRef
from tokenshards.pipeline.shards.manifest import Manifest, load_manifest, load_pointer
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.sources import source_root
from tokenshards.pipeline.storage.store import Store, absolute_url
from tokenshards.pipeline.tokenizers.directory import load_tokenizer
from tokenshards.pipeline.words import counted

__all__ = ["PlanRun"]


@dataclass(slots=True)
class _Tally:
    """Counts of this run: committed shards, and the progress of the shards in flight."""

    inputs: int = 0
    bytes_in: int = 0
    quarantined: int = 0
    absent: int = 0
    """Of the inputs of committed shards."""
    shards: int = 0
    inputs_before: int = 0
    absent_before: int = 0
    """Of shards that this run did not make."""
    lost: int = 0
    """Further inputs that damaged tars lost, of all committed shards; see `Untaken.lost`."""
    in_flight: dict[int, list[int]] = field(default_factory=dict)

    def totals(self) -> tuple[int, int, int]:
        """Return inputs, bytes and quarantined inputs, including shards in flight."""
        flying = [sum(column) for column in zip(*list(self.in_flight.values()), strict=True)] or [0, 0, 0]
        return self.inputs + flying[0], self.bytes_in + flying[1], self.quarantined + flying[2]


class PlanRun:
    """Runs the open shards of one plan. As the runner's listener it counts, reports, logs, and stops a run with too many bad inputs."""

    def __init__(self, store: Store, plan: Plan, request: TokenizeRequest, runner: Runner, reporter: Reporter) -> None:
        self._store = store
        self._plan = plan
        self._request = request
        self._runner = runner
        self._reporter = reporter
        self._quarantined_before = self._shards_before = 0
        self._job: JobSpec | None = None
        self._unreadable = 0
        self._unreadable_examples: list[str] = []
        self._begun: float | None = None
        self._standing: dict[str, Any] = {}
        self._heartbeat = Heartbeat(store, plan.plan_id, lambda: self.progress().to_json())
        self.tally = _Tally()
        self.usage = RunUsage()
        self.seconds = 0.0

    def run(self, parent: Manifest | None) -> Manifest:
        """Return the manifest of this generation once every shard is committed and the accounts balance."""
        store, plan = self._store, self._plan
        spec = ensure_tokenizer(store, plan)
        survey = survey_plan(store, plan, spec)
        if survey.done:
            self._reporter.say(
                f"continuing plan {plan.plan_id[:12]} of {store.url}: {len(survey.done)} of "
                f"{counted(plan.shards, 'shard is', 'shards are')} done"
            )
        for problem in survey.problems:
            self._reporter.say(f"{problem.object} is {problem.kind} ({problem.detail}); its shard will be redone")
        started = time.monotonic()
        replaced, dropped = survey.replaced, survey.dropped
        with self._heartbeat:
            if not survey.finished:
                todo, self.tally.inputs_before = survey.to_do, survey.inputs_seen - survey.untaken.left_out_count
                self._quarantined_before, self.tally.absent_before = survey.quarantined, survey.untaken.absent
                self.tally.lost = survey.untaken.lost
                self._shards_before = len(survey.done)
                del survey  # a run may take days, and `_work` makes a new survey at its end
                survey = self._work(todo, spec)
            if plan.generation == 1:  # --max-bad does not limit a retry
                self.tally.lost = survey.untaken.lost
                there = survey.planned - survey.untaken.absent + survey.untaken.lost
                self._check_limit(survey.quarantined + survey.untaken.lost, there, there)
            pointer = load_pointer(store)
            if pointer is not None and int(pointer["generation"]) >= plan.generation:  # another driver that joined wrote it first
                manifest = load_manifest(store, pointer)
            else:
                manifest = close_generation(store, plan, survey, spec, parent)
        removed = self._remove_replaced(manifest, replaced, dropped)
        if not (write_card(store, manifest) if removed else has_own_card(store)):  # the card's glob over shards/ may be valid only now
            self._reporter.say(f"note: {store.url}/{CARD_PATH} is not a card written by tokenshards, so it is kept unchanged")
        for note in closing_notes(store, plan, manifest):
            self._reporter.say(f"note: {note}")
        self.seconds = time.monotonic() - started
        return manifest

    def _remove_replaced(self, manifest: Manifest, replaced: list[ObjectRef], dropped: list[str]) -> list[str]:
        """Remove the objects that this run replaced, so that `shards/*.parquet` is the dataset; the last of several drivers does it."""
        if not replaced and not dropped:
            return []
        try:
            removed = [] if live_runs(self._store) else remove_replaced(self._store, manifest, replaced, dropped)
        except TransientStorageError as error:
            self._reporter.say(f"note: replaced objects could not be removed ({error}); `tokenshards verify {self._store.url}` lists them")
            return []
        for path in removed:
            self._reporter.say(f"removed {path}: its commit was damaged, and its shard was redone")
        return removed

    def _work(self, todo: list[int], spec: TokenizerSpec) -> Survey:
        plan, request = self._plan, self._request
        if request.run.join:  # in the same order two drivers would do the same work
            random.Random(self._heartbeat.record.uuid).shuffle(todo)
        self._begun = time.monotonic()
        self._reporter.begin(self._planned(), self.tally.inputs_before)
        self._job = job = JobSpec(
            out_url=absolute_url(request.out_url),
            out_options=request.out_options,
            source_url=absolute_url(source_root(request.source_url, request.source).location),
            source_config=plan.source_config(request.source),
            plan_id=plan.plan_id,
            retry=self._store.retry,
            run_uuid=self._heartbeat.record.uuid,
            join=request.run.join,
        )
        try:
            failed = self._runner.run(job, todo, self)
        finally:
            self._reporter.end()
        survey = survey_plan(self._store, plan, spec)
        if failed and not survey.finished:
            shard, message = next(iter(failed.items()))
            if self._unreadable:
                message += f"\n{describe_unreadable(self._unreadable, self._unreadable_examples)}"
            raise IncompleteError(
                f"{plan.shards - len(survey.done)} of {counted(plan.shards, 'shard is', 'shards are')} "
                f"not done; the last error of shard {shard}: {message}\n"
                "Nothing was lost, and nothing was quarantined because of this. Run the same command again: it continues"
            )
        return survey

    def started(self, shard: int) -> None:
        """Start to count a shard in flight."""
        self.tally.in_flight[shard] = [0, 0, 0]

    def progressed(self, shard: int, inputs: int, bytes_in: int, quarantined: int) -> None:
        """Add to the counts of a shard in flight."""
        counts = self.tally.in_flight[shard]
        for index, value in enumerate((inputs, bytes_in, quarantined)):
            counts[index] += value

    def committed(self, shard: int, summary: ShardSummary) -> None:
        """Move the counts of a shard from in flight to committed."""
        tally = self.tally
        tally.in_flight.pop(shard, None)
        tally.inputs += summary.inputs
        tally.absent += summary.absent
        tally.bytes_in += summary.bytes_in
        tally.quarantined += summary.quarantined
        tally.lost += summary.lost
        tally.shards += 1

    def committed_elsewhere(self, shard: int, summary: ShardSummary) -> None:
        """Count a shard of another run as done, and not as our work."""
        self.tally.in_flight.pop(shard, None)
        self.tally.inputs_before += summary.inputs
        self.tally.absent_before += summary.absent
        self.tally.lost += summary.lost
        self._shards_before += 1
        self._quarantined_before += summary.quarantined

    def abandoned(self, shard: int) -> None:
        """Drop the counts of a shard in flight."""
        self.tally.in_flight.pop(shard, None)

    def unreadable(self, count: int, examples: Sequence[str]) -> None:
        """Count unreadable objects, which keep shards uncommitted, for the final message."""
        self._unreadable += count
        self._unreadable_examples += examples

    def measured(self, usage: RunUsage) -> None:
        """Store the usage of the workers for the report, and log it."""
        self.usage = usage
        self._heartbeat.log("how busy the workers were", **{name: round(share, 4) for name, share in usage.busy_shares().items()})

    def watched(self, standing: dict[str, Any]) -> None:
        """Keep how the workers are, for the run's record."""
        self._standing = standing

    def noted(self, message: str, **details: Any) -> None:
        """Write a message to the user and to the run's log."""
        self._reporter.say(message)
        self._heartbeat.log(message, **details)

    def tick(self) -> None:
        """Report progress; raise TooManyBadInputsError once the limit is certainly passed. For tars the total is an estimate."""
        progress = self.progress()
        self._reporter.advance(progress)
        bad = self._quarantined_before + progress.images_quarantined + self.tally.lost
        there = self._expected_inputs(progress.images_seen) if self._plan.generation == 1 else None
        if there is not None:
            seen = self.tally.inputs_before + progress.images_seen + self.tally.lost
            self._check_limit(bad, there, seen, about="about " if self._plan.tars_planned else "")

    def _expected_inputs(self, inputs: int) -> int | None:
        """Return the number of planned inputs and of those that damaged tars lost, without those known to be absent.

        For tars it is estimated from the committed shards; None before the first one.
        """
        plan, tally = self._plan, self.tally
        absent = tally.absent_before + tally.absent
        if not plan.tars_planned:
            return plan.images_planned - absent
        done = self._shards_before + tally.shards
        there = tally.lost - absent
        counted = (tally.inputs_before + tally.inputs + there) * plan.shards // done if done else 0
        return max(counted, tally.inputs_before + inputs + there) if done else None

    def _check_limit(self, bad: int, planned: int, seen: int, about: str = "") -> None:
        """Raise TooManyBadInputsError with an example of each reason if too many inputs failed. `seen`: the inputs tried so far."""
        if bad <= self._request.run.max_bad * planned:
            return
        work = [] if self._plan.is_import else [shard for shard, counts in self.tally.in_flight.items() if counts[2]]
        examples = failure_examples(self._store, self._job, work)
        such = "".join(f"{line}\n" for line in examples)
        lost = f" (about {self.tally.lost:,} of them are lost with damaged tars)" if self.tally.lost else ""
        raise TooManyBadInputsError(
            f"{bad:,} of {about}{counted(planned, 'input')} failed permanently{lost}, which is more than --max-bad "
            f"{self._request.run.max_bad:g}{', such as' if examples else '.'}\n{such}{self._ways_on(max_bad_for(bad, seen))}; "
            f"`tokenshards quarantine {self._store.url}` lists the failures of committed shards"
        )

    def _ways_on(self, share: float) -> str:
        """Return how to go on after too many failures. Mended files need a retry, which needs a complete dataset."""
        accept = f"To accept them, run the same command with a larger --max-bad, such as --max-bad {share:g}"
        return accept if self._plan.is_import else f"{accept}. After that `tokenshards retry-failed {self._store.url}` tries mended files"

    def progress(self) -> RunProgress:
        """Return how far the run is; may be asked by another thread."""
        inputs, bytes_in, quarantined = self.tally.totals()
        return RunProgress(
            images_planned=self._planned(),
            images_before=self.tally.inputs_before,
            images_seen=inputs,
            bytes_in=bytes_in,
            images_quarantined=quarantined,
            images_absent=self.tally.absent,
            shards_committed=self.tally.shards,
            work_seconds=0.0 if self._begun is None else round(time.monotonic() - self._begun, 3),
            workers=self._standing.get("workers", {}),
            longest=self._standing.get("longest"),
        )

    def _planned(self) -> int | None:
        return None if self._plan.tars_planned else self._plan.images_planned


def ensure_tokenizer(store: Store, plan: Plan) -> TokenizerSpec:
    """Return the spec of the stored tokenizer; raises PlanError unless it is byte for byte the planned one."""
    for path, sha256 in plan.tokenizer_objects.items():
        try:
            seen = sha256_hex(store.read(path))
        except MissingObjectError:
            raise PlanError(f"{store.url}/{path} is missing. Run `tokenshards repair {store.url}` to see what can be restored") from None
        if seen != sha256:
            raise PlanError(
                f"{store.url}/{path} does not match the plan (sha256 {seen[:12]}…, expected {sha256[:12]}…). "
                f"Run `tokenshards repair {store.url}` to see what can be restored"
            )
    return load_tokenizer(store, TOKENIZER_FOLDER).spec
