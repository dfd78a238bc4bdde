"""The decisions that all runners share: which worker gets which shard, which worker hangs, what a death means, what to report.

A runner only starts workers, sends commands to workers, passes their messages on, and kills the workers that the supervisor names.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from tokenshards.pipeline.activity import ENCODE, Doing
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.errors import TokenshardsError
from tokenshards.pipeline.job.job_spec import ShardSummary
from tokenshards.pipeline.runners.base import RunListener, error_of
from tokenshards.pipeline.runners.deadlines import SILENT_BEATS, Deadlines, State, Verdict
from tokenshards.pipeline.runners.shard_queue import ShardQueue, ShardTask
from tokenshards.pipeline.runners.stage_usage import RunUsage

__all__ = ["TICK_SECONDS", "Supervisor", "Worker", "beat_seconds"]

TICK_SECONDS = 0.2
WATCH_SECONDS = 1.0
NOTE_SECONDS = 60.0
"""How often we report that a run waits for its store, or that a worker is slow."""
LATE_SECONDS = 10.0
"""A driver that looks at its workers so much later than planned was stopped (Ctrl-Z), or had to wait for its terminal."""
STARTUP_FAILURES = 4
"""The run gives up after so many failed starts in a row while no worker is ready."""


def beat_seconds(stall_seconds: float, most: float) -> float:
    """Return the interval of a worker's heartbeats. Several heartbeats come within the stall timeout."""
    return min(most, stall_seconds / 4)


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """The driver's side of a worker. A runner adds the process or the actor."""

    name: str
    host: str = ""
    ready: bool = False
    ready_since: float = 0.0
    tasks: dict[int, ShardTask] = field(default_factory=dict)
    """Shards at work."""
    counts: dict[int, list[int]] = field(default_factory=dict)
    """Counts of each shard at work, as last reported to the listener."""
    doing: list[Doing] = field(default_factory=list)
    """Activities in the worker's last heartbeat."""
    heard_at: float | None = None
    """Time of the last message; None if the worker's process may not have started."""
    has_encoded: bool = False


W = TypeVar("W", bound=Worker)


class Supervisor(Generic[W]):
    """The workers, the queue of shards, and the usage of the workers. One worker gets up to `lanes` shards at once."""

    def __init__(
        self, shards: Sequence[int], config: RunConfig, listener: RunListener, *, beat_seconds: float, lanes: int = 1, noun: str = "worker"
    ) -> None:
        self._config = config
        self._listener = listener
        self._lanes = lanes
        self._worker = f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
        self._beat_seconds = beat_seconds
        self._deadlines = Deadlines(config.stall_timeout_seconds, beat_seconds)
        self._startup_failures = 0
        self._hire_after = 0.0
        self._watch_at = time.monotonic()
        self._stopped_until, self._stopped_seconds = float("-inf"), 0.0
        self._watch_seconds = min(WATCH_SECONDS, beat_seconds)
        self._noted_at: dict[tuple[State, str], float] = {}
        self.queue = ShardQueue(shards, config, listener)
        self.workers: list[W] = []
        self.usage = RunUsage()
        self.progress_at = time.monotonic()

    def in_flight(self) -> int:
        """Return the number of shards that workers are working on."""
        return sum(len(worker.tasks) for worker in self.workers)

    def unfinished(self) -> bool:
        """Return whether any shard is still neither committed nor given up."""
        return bool(self.queue) or self.in_flight() > 0

    def at_work(self) -> bool:
        """Return whether a worker with a shard has given a sign of life lately. A worker that hangs is killed, so this worker works."""
        recently = time.monotonic() - SILENT_BEATS * self._beat_seconds
        return any(worker.tasks and worker.heard_at is not None and worker.heard_at > recently for worker in self.workers)

    def wanted(self, most: int) -> int:
        """Return how many workers the remaining shards need, at most `most`."""
        return min(most, len(self.queue) + self.in_flight())

    def may_hire(self) -> bool:
        """Return whether a worker may start now: False for a while after a failed start."""
        return time.monotonic() >= self._hire_after

    def pause_hiring(self, seconds: float) -> None:
        """Start no worker for `seconds`."""
        self._hire_after = time.monotonic() + seconds

    def assign(self) -> Iterator[tuple[W, ShardTask]]:
        """Yield the tasks to hand out now. All workers get a first shard before any gets a second. A suspect gets a worker of its own."""
        now = time.monotonic()
        ready = [worker for worker in self.workers if worker.ready]
        for depth in range(self._lanes):
            emptied = self.queue.suspects() if depth else 0
            for worker in ready:
                if len(worker.tasks) != depth or any(task.suspect for task in worker.tasks.values()):
                    continue
                if emptied:  # this worker gets no second shard, because a suspect waits for a free worker
                    emptied -= 1
                    continue
                if depth and len(self.queue) < len(ready):  # near the end, a second shard would only wait for the first shard
                    return
                task = self.queue.next_due(now, suspects=depth == 0)
                if task is None:
                    return
                if not worker.tasks:
                    worker.heard_at, worker.doing = now, []  # an idle worker was not asked for heartbeats
                worker.tasks[task.shard] = task
                if task.search is None:
                    worker.counts[task.shard] = [0, 0, 0]
                    self._listener.started(task.shard)
                yield worker, task

    def became_ready(self, worker: W) -> None:
        """Record that a worker has opened the job."""
        now = time.monotonic()
        worker.ready, worker.ready_since, worker.heard_at, worker.doing = True, now, now, []
        self.progress_at = now
        self._startup_failures = 0

    def heard(self, worker: W, message: dict[str, Any]) -> None:
        """Record a heartbeat."""
        worker.heard_at = time.monotonic()
        worker.doing = [self._without_stop(Doing.from_json(value), worker.heard_at) for value in message["doing"]]
        worker.has_encoded = ENCODE in message["slowest"]
        self._deadlines.measure(message["slowest"])
        for shard, *counts in message["shards"]:
            before = worker.counts.get(shard)
            if before is not None and counts != before:
                self.progress_at = worker.heard_at
                inputs, bytes_in, quarantined = (now - then for now, then in zip(counts, before, strict=True))
                self._listener.progressed(shard, inputs, bytes_in, quarantined)
                worker.counts[shard] = counts

    def served(self, worker: W, shard: int, event: dict[str, Any]) -> ShardSummary | None:
        """Record the result of a command. Return the summary of the shard if this run has committed the shard."""
        task = worker.tasks.pop(shard)
        worker.counts.pop(shard, None)
        worker.heard_at = now = time.monotonic()
        if event["event"] == "failed":
            self.queue.failed_once(task, event["kind"], event["message"], now, event.get("unreadable"))
            return None
        self.progress_at = now
        if event["event"] != "done":
            self.queue.answered(task, event)
            return None
        summary = ShardSummary(**event["summary"])
        if event.get("by_another"):
            self._listener.committed_elsewhere(shard, summary)
            return None
        self.usage.add(summary.seconds)
        self._listener.committed(shard, summary)
        for note in event.get("notes", ()):
            self._listener.noted(note, shard=shard, worker=worker.name, host=worker.host)
        return summary

    def failed(self, worker: W, shard: int, message: str) -> None:
        """Record that a command ended without an answer, although the worker lives."""
        task = worker.tasks.pop(shard)
        worker.counts.pop(shard, None)
        self.queue.failed_once(task, "transient", message, time.monotonic())

    def removed(self, worker: W, *, lanes: int = 1, decode_threads: int = 0) -> None:
        """Record that a worker has ended or was released. `lost` handles the tasks of the worker."""
        self.workers.remove(worker)
        if worker.ready:
            self.usage.count_worker(time.monotonic() - worker.ready_since, lanes=lanes, decode_threads=decode_threads)

    def lost(self, worker: W, how: str, *, verdict: Verdict | None = None, blamed: bool = True, **details: Any) -> None:
        """Record that a ready worker died, or was killed by `verdict`. If the machine left, the shards are not `blamed`."""
        for task in worker.tasks.values():
            if blamed and verdict is not None and not verdict.blames_input:
                self.queue.failed_once(task, "transient", f"a worker {how}", time.monotonic(), worker=worker.name, **details)
                continue
            hung_at = "" if verdict is None else verdict.hung_at
            said = {"worker": worker.name, "host": worker.host, **details}
            self.queue.worker_died(task, how, blamed=blamed, hung=verdict is not None, hung_at=hung_at, **said)
        worker.tasks.clear()

    def broken(self, event: dict[str, Any]) -> None:
        """Record that a worker could not open the job. Raises the worker's error, unless the error may be temporary."""
        error = error_of(event)
        if event["kind"] == "fatal":
            raise error
        self.failed_to_start(error)

    def failed_to_start(self, error: TokenshardsError) -> None:
        """Record a failed start and pause. Raises the error after repeated failures while no worker is ready."""
        self._startup_failures += 1
        if self._startup_failures >= STARTUP_FAILURES and not any(worker.ready for worker in self.workers):
            raise error
        delay = min(self._config.retry.max_delay_seconds, 0.5 * 2 ** min(self._startup_failures, 10))
        self.pause_hiring(delay)
        self._listener.noted(f"{self._worker} could not start and is tried again in {delay:.0f} s: {error}")

    def hanging(self) -> list[tuple[W, Verdict]]:
        """Return the workers to kill now. Tell the listener the states of all workers."""
        now = time.monotonic()
        if now < self._watch_at:
            return []
        if now - self._watch_at > LATE_SECONDS:  # heartbeats of this time may still wait for us
            self._stopped_until, self._stopped_seconds = now, now - self._watch_at
            for worker in self.workers:
                worker.heard_at = None if worker.heard_at is None else now
                worker.doing = [self._without_stop(doing, now) for doing in worker.doing]
        self._watch_at = now + self._watch_seconds
        found, states, longest = [], Counter[str](), Verdict(state=State.ALIVE)
        for worker in self.workers:
            verdict = self._judge(worker, now)
            if verdict is None:
                states["pending" if worker.heard_at is None else "idle"] += 1
                continue
            states[verdict.state.value] += 1
            if verdict.state is State.HANGING:
                found.append((worker, verdict))
                continue
            self._tell(verdict, now)
            if verdict.doing is not None and (longest.doing is None or verdict.doing.seconds > longest.doing.seconds):
                longest = verdict
        doing = longest.doing
        shown = None if doing is None else {name: getattr(doing, name) for name in ("stage", "input", "seconds", "retries_left")}
        self._listener.watched({"workers": dict(states), "longest": shown})
        return found

    def _judge(self, worker: W, now: float) -> Verdict | None:
        if worker.heard_at is None or (worker.ready and not worker.tasks):
            return None
        first = not worker.has_encoded and not any(task.suspect for task in worker.tasks.values())
        return self._deadlines.judge(worker.doing, now - worker.heard_at, ready=worker.ready, first=first)

    def _without_stop(self, doing: Doing, now: float) -> Doing:
        """Leave out the time in which the driver was stopped. Ctrl-Z stops the workers too."""
        since = now - self._stopped_until
        return replace(doing, seconds=max(since, doing.seconds - self._stopped_seconds)) if doing.seconds > since else doing

    def _tell(self, verdict: Verdict, now: float) -> None:
        doing = verdict.doing
        if doing is None or now - self._noted_at.get((verdict.state, doing.stage), float("-inf")) < NOTE_SECONDS:
            return
        if verdict.state is State.WAITING_FOR_STORE:
            tries = "" if doing.retries_left is None else f", {doing.retries_left} attempts left"
            self._listener.noted(f"waiting for the store: {doing.input} for {doing.seconds:.0f} s{tries}")
        elif verdict.state is State.SLOW:
            self._listener.noted(
                f"{self._worker} is slow or hangs: {doing.seconds:.0f} s in the stage {doing.stage} ({doing.input or 'no input'}); "
                f"the limit is {verdict.limit_seconds:.0f} s"
            )
        self._noted_at[verdict.state, doing.stage] = now
