"""A Ray cluster: one actor per tokenizer, the queue of shards in this process.

The driver owns every retry: actors are never restarted and calls never repeated by Ray. All actors that the run could use are created at
once, because pending actors are the demand that an autoscaler and a node that joins both serve; they are put to work as they become
ready, and those that are not needed any more are released. Nothing but counts and short texts passes through the driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from tokenshards.pipeline.code_identity import code_digest
from tokenshards.pipeline.config import ALLOW_PYTHON, RayConfig, RunConfig
from tokenshards.pipeline.errors import ClusterError, TokenshardsError, TransientStorageError
from tokenshards.pipeline.runners.base import JobSpec, RunListener, ShardSummary
from tokenshards.pipeline.runners.decode_placement import DecodeRates, choose_placement
from tokenshards.pipeline.runners.ray_actor import ShardActor
from tokenshards.pipeline.runners.ray_connection import HeadWatch, joined_cluster
from tokenshards.pipeline.runners.ray_nodes import ClusterView
from tokenshards.pipeline.runners.shard_queue import ShardQueue, ShardTask
from tokenshards.pipeline.runners.stage_usage import RunUsage

__all__ = ["RayRunner"]

TICK_SECONDS = 0.2
PULSE_SECONDS = 5.0
CLOSE_SECONDS = 5.0
STARTUP_FAILURES = 5
"""Actors that may fail in a row, while none is at work, before the run gives up."""
WAITING_SECONDS = 60.0
"""How often a run that waits for nodes says so."""
MIN_MEASURED_IMAGES = 32


@dataclass(slots=True, eq=False)
class _Worker:
    """The driver's side of an actor."""

    name: str
    actor: Any
    ready: bool = False
    ready_since: float = 0.0
    node_id: str = ""
    host: str = ""
    tasks: dict[Any, ShardTask] = field(default_factory=dict)
    seen: dict[int, list[int]] = field(default_factory=dict)
    """Counts of each shard at work that the listener was told of."""
    pulse: Any = None
    pulse_sent: float = 0.0


class RayRunner:
    """Runs shards on the cluster that `cluster.address` names."""

    def __init__(self, config: RunConfig, cluster: RayConfig, *, actor_class: type[ShardActor] = ShardActor) -> None:
        self._config = config
        self._cluster = cluster
        self._actor_class = actor_class

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        """Return the shards that stay uncommitted, each with the last error. Raises ClusterError where the cluster cannot be used."""
        try:
            with joined_cluster(self._cluster.address):
                return _RayRun(self._config, self._cluster, self._actor_class, job, shards, listener).run()
        except RayError as error:
            raise ClusterError(
                f"the Ray cluster was lost ({_in_one_line(error)}). Nothing that was committed is lost; when the cluster is back, run the "
                "same command again: it continues"
            ) from error


class _RayRun:
    def __init__(
        self,
        config: RunConfig,
        cluster: RayConfig,
        actor_class: type[ShardActor],
        job: JobSpec,
        shards: Sequence[int],
        listener: RunListener,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._listener = listener
        self._queue = ShardQueue(shards, config, listener)
        self._workers: list[_Worker] = []
        self._calls: dict[Any, tuple[_Worker, str]] = {}  # every reply that is awaited: whose, and of which call
        self._replies: queue.SimpleQueue[tuple[Any, Future[str]]] = queue.SimpleQueue()  # filled by a thread of Ray's
        self._round_at = 0.0
        self._usage = RunUsage()
        self._remote = cluster.decode == "remote"
        self._undecided = cluster.decode == "auto" and cluster.decode_threads > 0
        self._measured: tuple[_Worker, DecodeRates] | None = None  # all but the network, which this worker is asked for
        self._told_local = False
        self._startup_failures = 0
        self._hire_after = 0.0
        self._progress_at = self._waiting_noted_at = time.monotonic()
        # Arguments of every actor are stored once; their text may hold credentials, so it appears in no name and no log.
        self._job = ray.put(json.dumps(job.to_json()))
        options: dict[str, Any] = {
            "max_restarts": 0,
            "max_task_retries": 0,
            "num_cpus": cluster.cpus_per_actor,
            "num_gpus": cluster.gpus_per_actor,
            "max_concurrency": cluster.shards_in_flight,
            "concurrency_groups": {"control": 2},
        }
        if os.environ.get(ALLOW_PYTHON):  # what this user allows here, not who started the nodes
            options["runtime_env"] = {"env_vars": {ALLOW_PYTHON: os.environ[ALLOW_PYTHON]}}
        self._actor_type = ray.remote(**options)(actor_class)
        self._head = HeadWatch()
        self._cluster_view = ClusterView(self._head)
        spared = 1 if self._remote else 0  # actors that take every CPU leave none to decode on
        self._limit = cluster.max_actors or max(
            1, self._cluster_view.size.room_for(cluster.cpus_per_actor + spared, cluster.gpus_per_actor)
        )

    def run(self) -> dict[int, str]:
        actors = f"{self._limit} actor{'' if self._limit == 1 else 's'}"
        self._listener.noted(f"Ray cluster: {self._cluster_view.size}; up to {actors} of {self._actor_size()}")
        if lacking := self._cluster_view.lacks(self._cluster.cpus_per_actor, self._cluster.gpus_per_actor):
            self._listener.noted(
                f"no actor of {self._actor_size()} can start now: {lacking}. Waiting for a node that can hold one, until nothing moved "
                f"for {self._cluster.idle_timeout_seconds:,.0f} s (--give-up-after)"
            )
        if self._cluster.decode == "auto" and not self._cluster.decode_threads:
            self._listener.noted(
                "pictures are decoded beside the tokenizer: where an actor has one CPU, idle CPUs do more as further actors"
            )
        try:
            while self._queue or self._in_flight():
                self._make_round()
                self._assign()
                self._hear()
            self._listener.tick()
        finally:
            self._release_all()
            self._listener.measured(self._usage)
        return self._queue.failed

    def _make_round(self) -> None:
        """Look after all actors, now and then: done at every reply it would cost the driver more than the reply itself."""
        if time.monotonic() < self._round_at:
            return
        self._hire()
        self._release()
        self._send_pulses()
        self._watch()
        self._listener.tick()
        self._round_at = time.monotonic() + TICK_SECONDS

    def _in_flight(self) -> int:
        return sum(len(worker.tasks) for worker in self._workers)

    def _actor_size(self) -> str:
        cpus, gpus = self._cluster.cpus_per_actor, self._cluster.gpus_per_actor
        return f"{cpus} CPU{'' if cpus == 1 else 's'}" + (f" and {gpus:g} GPU" if gpus else "")

    def _wanted(self) -> int:
        return min(self._limit, len(self._queue) + self._in_flight())

    def _hire(self) -> None:
        if time.monotonic() < self._hire_after or len(self._workers) >= self._wanted() or not self._head.answers():
            return
        while len(self._workers) < self._wanted():
            name = uuid.uuid4().hex[:12]
            worker = _Worker(name, self._actor_type.remote(name, self._job, self._cluster.decode_threads))
            self._workers.append(worker)
            self._call(worker, "open", worker.actor.open.remote())

    def _release(self) -> None:
        """Let actors go that have nothing to do: those still pending first."""
        spare = len(self._workers) - self._wanted()
        if spare <= 0:
            return
        idle = sorted((worker for worker in self._workers if not worker.tasks), key=lambda worker: worker.ready)
        closing = [(worker, worker.actor.close.options(concurrency_group="control").remote()) for worker in idle[:spare] if worker.ready]
        if closing:
            ray.wait([reference for _, reference in closing], num_returns=len(closing), timeout=CLOSE_SECONDS)
        for worker in idle[:spare]:
            self._drop(worker)

    def _release_all(self) -> None:
        with contextlib.suppress(RayError):
            closing = [worker.actor.close.options(concurrency_group="control").remote() for worker in self._workers if worker.ready]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for worker in list(self._workers):
            self._drop(worker)

    def _drop(self, worker: _Worker) -> None:
        """Kill an actor and forget it; its tasks are the caller's to take care of."""
        self._workers.remove(worker)
        for reference in [reference for reference, (owner, _) in self._calls.items() if owner is worker]:
            del self._calls[reference]
        if self._measured is not None and self._measured[0] is worker:
            self._measured, self._undecided = None, True  # another one is measured
        if worker.ready:
            lanes = self._cluster.shards_in_flight
            threads = lanes * self._cluster.decode_cpus if self._remote else self._cluster.decode_threads
            self._usage.count_worker(time.monotonic() - worker.ready_since, lanes=lanes, decode_threads=threads)
        with contextlib.suppress(RayError):
            ray.kill(worker.actor, no_restart=True)

    def _call(self, worker: _Worker, what: str, reference: Any) -> None:
        self._calls[reference] = worker, what
        # `ray.wait` would look at every awaited reply for each that arrives.
        reference.future().add_done_callback(partial(self._arrived, reference))

    def _arrived(self, reference: Any, reply: Future[str]) -> None:
        self._replies.put((reference, reply))

    def _assign(self) -> None:
        now = time.monotonic()
        ready = [worker for worker in self._workers if worker.ready]
        for depth in range(self._cluster.shards_in_flight):  # everyone gets a first shard before anyone gets a second
            emptied = self._queue.suspects() if depth else 0
            for worker in ready:
                if len(worker.tasks) != depth or any(task.suspect for task in worker.tasks.values()):
                    continue
                if emptied:  # it works off what it has: a suspect waits for a worker to itself
                    emptied -= 1
                    continue
                if depth and len(self._queue) < len(ready):  # near the end a second shard would only wait behind the first
                    return
                task = self._queue.next_due(now, suspects=depth == 0)
                if task is None:
                    return
                self._begin(worker, task)

    def _begin(self, worker: _Worker, task: ShardTask) -> None:
        command = task.command()
        decode_cpus = 0
        if command["op"] == "run":
            self._listener.started(task.shard)
            worker.seen[task.shard] = [0, 0, 0]
            # A picture that kills a decoding task looks like an outage. Decoded by its actor, whose death is told apart, it is found.
            decode_cpus = self._decode_cpus() if self._remote and not task.failures and not task.suspect else 0
        reference = worker.actor.serve.remote(json.dumps(command), decode_cpus)
        worker.tasks[reference] = task
        self._call(worker, "serve", reference)

    def _decode_cpus(self) -> int:
        """Return the CPUs of a decoding task, 0 where every CPU is an actor's: such a task would wait for ever."""
        actors = Counter(worker.node_id for worker in self._workers if worker.ready)
        pending = len(self._workers) - actors.total()
        free = self._cluster_view.free_cpus(actors, pending, cpus=self._cluster.cpus_per_actor, gpus=self._cluster.gpus_per_actor)
        cpus = min(self._cluster.decode_cpus, free)
        if cpus == 0 and not self._told_local:
            self._told_local = True
            text = "no CPU is left beside the actors, so pictures are decoded by them: add CPU nodes, or give fewer --max-actors"
            self._listener.noted(text)
            self._usage.notes.append(text)
        return cpus

    def _hear(self) -> None:
        """Take in the replies that are there; wait a moment for the first."""
        with contextlib.suppress(queue.Empty):
            self._heard(*self._replies.get(timeout=TICK_SECONDS))
            while True:
                self._heard(*self._replies.get_nowait())

    def _heard(self, reference: Any, reply: Future[str]) -> None:
        worker, what = self._calls.pop(reference, (None, ""))
        if worker is None:  # dropped with its actor a moment ago
            return
        try:
            text = reply.result()
        except RayError as error:
            if what == "network" and isinstance(error, RayTaskError):
                self._choose_placement(None)
            else:
                self._lost(worker, reference, error)
            return
        if what == "open":
            self._opened(worker, json.loads(text))
        elif what == "pulse":
            self._pulsed(worker, json.loads(text))
        elif what == "network":
            bytes_per_second, picture_bytes = json.loads(text)
            self._choose_placement(bytes_per_second / picture_bytes if bytes_per_second else None)
        else:
            self._served(worker, worker.tasks.pop(reference), json.loads(text))

    def _opened(self, worker: _Worker, reply: dict[str, Any]) -> None:
        if reply["event"] == "broken":
            self._drop(worker)
            if reply["kind"] == "fatal":
                raise TokenshardsError(reply["message"])
            self._failed_to_start(TransientStorageError(reply["message"]))
            return
        if reply["code"] != code_digest():
            raise ClusterError(
                f"node {reply['host']} has other tokenshards code than this driver (digest {reply['code']}, here {code_digest()}). "
                "Use one image for all nodes, or `tokenshards submit`, which brings its own code"
            )
        worker.ready, worker.node_id, worker.host = True, reply["node_id"], reply["host"]
        worker.ready_since = self._progress_at = time.monotonic()
        self._startup_failures = 0

    def _failed_to_start(self, error: Exception) -> None:
        self._startup_failures += 1
        if self._startup_failures >= STARTUP_FAILURES and not any(worker.ready for worker in self._workers):
            if isinstance(error, TokenshardsError):
                raise error
            raise ClusterError(f"actors cannot start: {_in_one_line(error)}") from error
        delay = min(self._config.retry.max_delay_seconds, 0.5 * 2 ** min(self._startup_failures, 10))
        self._hire_after = time.monotonic() + delay
        self._listener.noted(f"an actor could not start and is tried again in {delay:.0f} s: {_in_one_line(error)}")

    def _served(self, worker: _Worker, task: ShardTask, event: dict[str, Any]) -> None:
        now = time.monotonic()
        worker.seen.pop(task.shard, None)
        if event["event"] == "done":
            summary = ShardSummary(**event["summary"])
            self._progress_at = now
            self._usage.add(summary.seconds)
            self._listener.committed(task.shard, summary)
            for note in event.get("notes", ()):
                self._listener.noted(note, shard=task.shard, worker=worker.name, host=worker.host)
            if self._undecided and summary.inputs_seen >= MIN_MEASURED_IMAGES:
                self._place_decoding(worker, summary)
        elif event["event"] == "failed":
            self._queue.failed_once(task, event["kind"], event["message"], now, event.get("unreadable"))
        else:
            self._progress_at = now
            self._queue.answered(task, event)

    def _send_pulses(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.ready and worker.tasks and worker.pulse is None and now - worker.pulse_sent >= PULSE_SECONDS:
                worker.pulse = worker.actor.pulse.options(concurrency_group="control").remote()
                worker.pulse_sent = now
                self._call(worker, "pulse", worker.pulse)

    def _pulsed(self, worker: _Worker, reply: dict[str, Any]) -> None:
        worker.pulse = None
        limit = self._config.stall_timeout_seconds
        for shard, *counts, _ in reply["shards"]:
            before = worker.seen.get(shard)
            if before is not None and counts != before:
                self._progress_at = time.monotonic()
                inputs, bytes_in, quarantined = (now - then for now, then in zip(counts, before, strict=True))
                self._listener.progressed(shard, inputs, bytes_in, quarantined)
                worker.seen[shard] = counts
        # Which of its shards hangs cannot be seen from here, since the others soon wait for their turn at the tokenizer.
        if any(idle_seconds > limit for *_, idle_seconds in reply["shards"]):
            self._bury(worker, f"made no progress for {limit:.0f} s and was killed")

    def _watch(self) -> None:
        now, limit = time.monotonic(), self._config.stall_timeout_seconds
        for worker in list(self._workers):
            if worker.pulse is not None and now - worker.pulse_sent > limit:
                self._bury(worker, f"answered nothing for {limit:.0f} s and was killed")
        idle = now - self._progress_at
        if idle > PULSE_SECONDS:
            self._head.check()
        if idle > self._cluster.idle_timeout_seconds:
            raise ClusterError(
                f"no shard made progress for {idle:,.0f} s (--give-up-after {self._cluster.idle_timeout_seconds:,.0f}): "
                f"{self._standing()}. Nothing was lost; run the same command again: it continues"
            )
        if idle > WAITING_SECONDS and now - self._waiting_noted_at > WAITING_SECONDS:
            self._waiting_noted_at = now
            self._listener.noted(f"no progress for {idle:,.0f} s: {self._standing()}")

    def _standing(self) -> str:
        ready = sum(worker.ready for worker in self._workers)
        waiting = len(self._workers) - ready
        standing = f"{ready} actors are at work and {waiting} wait for {self._actor_size()} each; the cluster has {self._cluster_view.size}"
        lacking = self._cluster_view.lacks(self._cluster.cpus_per_actor, self._cluster.gpus_per_actor)
        return standing + (f"; {lacking}" if lacking else "")

    def _lost(self, worker: _Worker, reference: Any, error: RayError) -> None:
        """A call failed in Ray itself: the actor is dead, unreachable, or its code raised what it should not."""
        if worker not in self._workers:
            return
        if isinstance(error, RayTaskError) and not isinstance(error, RayActorError):
            task = worker.tasks.pop(reference, None)
            if task is not None:
                worker.seen.pop(task.shard, None)
                self._queue.failed_once(task, "transient", _in_one_line(error), time.monotonic())
                return
        # A connection that breaks says nothing of the cause; for what is seen of a node that leaves, it is the first sign. Ray kills for
        # memory whoever is there when a node has none left.
        innocent = isinstance(error, ActorUnavailableError | OutOfMemoryError) or getattr(error, "preempted", False)
        machine_left = innocent or "node has died" in str(error)
        if worker.ready:
            self._bury(worker, f"died ({_in_one_line(error)})", machine_left=machine_left)
            return
        self._drop(worker)
        if machine_left:
            self._hire_after = time.monotonic() + TICK_SECONDS
        else:
            self._failed_to_start(error)

    def _bury(self, worker: _Worker, how: str, *, machine_left: bool = False) -> None:
        """Replace a dead or hanging actor. Its shards are blamed, so that one that kills is found, but not where the machine left."""
        self._drop(worker)
        blamed = not machine_left and self._cluster_view.has(worker.node_id)
        if not blamed:
            self._listener.noted(
                f"node {worker.host} is gone, out of reach or out of memory, with {len(worker.tasks)} shards in flight", how=how
            )
        for task in worker.tasks.values():
            self._queue.worker_died(task, how, blamed=blamed, worker=worker.name, host=worker.host)

    def _place_decoding(self, worker: _Worker, summary: ShardSummary) -> None:
        """Decide once, from the first shard of size, where pictures are decoded from now on; the network is measured where it matters."""
        self._undecided = False
        config, size = self._cluster, self._cluster_view.size
        actors = min(len(self._workers), size.room_for(config.cpus_per_actor, config.gpus_per_actor))
        per_cpu = summary.inputs_seen / max(1e-9, summary.seconds["decode"])
        rates = DecodeRates(
            decode=per_cpu * config.decode_threads,
            decode_per_cpu=per_cpu,
            encode=summary.inputs_seen / max(1e-9, summary.seconds["encode"]),
            network=None,
            idle_cpus=size.cpus - actors * config.cpus_per_actor,
            actors=actors,
        )
        self._measured = worker, rates
        if rates.network_matters:
            self._call(worker, "network", worker.actor.network_rate.options(concurrency_group="control").remote())
        else:
            self._choose_placement(None)

    def _choose_placement(self, images_per_second: float | None) -> None:
        if self._measured is None:
            return
        placement = choose_placement(replace(self._measured[1], network=images_per_second))
        self._measured = None
        self._remote = placement.remote
        text = f"pictures are decoded {'on other nodes' if placement.remote else 'beside the tokenizer'}: {placement.why}"
        self._listener.noted(text)
        self._usage.notes.append(text)


def _in_one_line(error: Exception) -> str:
    """Return what a person needs of Ray's errors, which run over many lines of remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayTaskError) or any(line.startswith("Traceback") for line in lines):
        lines = lines[-1:]
    text = " ".join(lines)
    if isinstance(error, RayActorError):
        text = re.sub(r"^The actor died unexpectedly before.*?ip: \S+ ", "", text)
    text = text[:400]
    if "No module named" in text:
        return f"{text}; the nodes lack a package that tokenshards needs. Install it in their image, or use `tokenshards submit`"
    return text
