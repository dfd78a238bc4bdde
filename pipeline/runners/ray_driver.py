"""Run shards on a Ray cluster, with one actor per tokenizer. The queue of shards is in this process.

The supervisor decides what the messages, the silence and the death of actors mean. Ray never restarts an actor and never repeats a call.
We create all actors that the run could use at once, because an autoscaler and a new node both react to pending actors. Actors begin to
work when they are ready. Actors that the run no longer needs are released. Only counts and short texts pass through the driver.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from ray.exceptions import RayError, RayTaskError

from tokenshards.pipeline.code_identity import code_digest
from tokenshards.pipeline.config import RayConfig, RunConfig
from tokenshards.pipeline.errors import ClusterError
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.runners.deadlines import Verdict
from tokenshards.pipeline.runners.ray_actor import ShardActor
from tokenshards.pipeline.runners.ray_connection import HeadWatch, joined_cluster
from tokenshards.pipeline.runners.ray_errors import call_failed, in_one_line, machine_left
from tokenshards.pipeline.runners.ray_nodes import ClusterView
from tokenshards.pipeline.runners.ray_placement import RayPlacement
from tokenshards.pipeline.runners.ray_pool import ActorPool, RayWorker
from tokenshards.pipeline.runners.shard_queue import ShardTask
from tokenshards.pipeline.runners.supervisor import TICK_SECONDS, Supervisor, beat_seconds
from tokenshards.pipeline.words import counted

__all__ = ["ActorLimit", "RayRunner"]

MOST_PULSE_SECONDS = 5.0
HEAD_SECONDS = 5.0
"""After so long without progress, we check whether the head answers."""
WAITING_SECONDS = 60.0
"""How often a run reports that it waits for nodes."""


class RayRunner:
    """Runs shards on the cluster that `cluster.address` names."""

    def __init__(self, config: RunConfig, cluster: RayConfig, *, actor_class: type[ShardActor] = ShardActor) -> None:
        self._config = config
        self._cluster = cluster
        self._actor_class = actor_class

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        """Return the shards that stay uncommitted, each with its last error. Raises ClusterError if the cluster cannot be used."""
        try:
            with joined_cluster(self._cluster.address):
                pool = ActorPool(self._cluster, self._actor_class, job)
                return _RayRun(self._config, self._cluster, pool, shards, listener).run()
        except RayError as error:
            raise ClusterError(
                f"the Ray cluster was lost ({in_one_line(error)}). No committed shard is lost. When the cluster is back, run the "
                "same command again: it continues"
            ) from error


class ActorLimit:
    """The limit of actors: the number that the user gave, else the most actors for which the cluster has had room at once.

    The limit never falls. The actors of a lost node stay pending, so that an autoscaler replaces the node. If a cluster has grown since the
    start, it has an autoscaler. We then ask for twice as many actors, so that the autoscaler adds nodes.
    """

    def __init__(self, asked: int | None, room: int) -> None:
        self._asked = asked
        self._room_at_start = self._most_room = room

    def update(self, room: int) -> int:
        """Return the limit, given that the cluster now has room for `room` actors."""
        self._most_room = max(self._most_room, room)
        grown = self._most_room > self._room_at_start
        return self._asked or max(1, 2 * self._most_room if grown else self._most_room)


class _RayRun:
    def __init__(self, config: RunConfig, cluster: RayConfig, pool: ActorPool, shards: Sequence[int], listener: RunListener) -> None:
        self._cluster = cluster
        self._pool = pool
        self._listener = listener
        self._beat = beat_seconds(config.stall_timeout_seconds, MOST_PULSE_SECONDS)
        self._supervisor: Supervisor[RayWorker] = Supervisor(
            shards, config, listener, beat_seconds=self._beat, lanes=cluster.shards_in_flight, noun="actor"
        )
        self._round_at = 0.0
        self._waiting_noted_at = time.monotonic()
        self._head = HeadWatch()
        self._view = ClusterView(self._head)
        self._placement = RayPlacement(cluster, self._view, self._tell)
        self._actor_limit = ActorLimit(cluster.max_actors, self._room())

    def run(self) -> dict[int, str]:
        supervisor, limit = self._supervisor, self._limit()
        self._listener.noted(f"Ray cluster: {self._view.size}; up to {counted(limit, 'actor')} of {self._actor_size()}")
        if lacking := self._view.lacks(self._cluster.cpus_per_actor, self._cluster.gpus_per_actor):
            self._listener.noted(
                f"no actor of {self._actor_size()} can start now: {lacking}. Waiting for a node that can hold an actor, until no shard "
                f"made progress for {self._cluster.idle_timeout_seconds:,.0f} s (--give-up-after)"
            )
        if self._cluster.decode == "auto" and not self._cluster.decode_threads:
            self._listener.noted("images are decoded beside the tokenizer: with one CPU per actor, idle CPUs do more as additional actors")
        try:
            while supervisor.unfinished():
                self._make_round()
                for worker, task in supervisor.assign():
                    self._pool.serve(worker, task, self._decode_cpus(task))
                for worker, what, reference, reply in self._pool.replies(TICK_SECONDS):
                    self._heard(worker, what, reference, reply)
            self._listener.tick()
        finally:
            with contextlib.suppress(RayError):
                self._pool.close(supervisor.workers)
            for worker in list(supervisor.workers):
                self._drop(worker)
            self._listener.measured(supervisor.usage)
        return supervisor.queue.failed

    def _make_round(self) -> None:
        """Check all actors once per tick. A check at every reply would cost the driver more than the reply itself."""
        if time.monotonic() < self._round_at:
            return
        self._hire()
        self._release()
        self._send_pulses()
        for worker, verdict in self._supervisor.hanging():
            self._bury(worker, verdict.describe(), verdict=verdict)
        self._watch_progress()
        self._listener.tick()
        self._round_at = time.monotonic() + TICK_SECONDS

    def _tell(self, text: str) -> None:
        self._listener.noted(text)
        self._supervisor.usage.notes.append(text)

    def _actor_size(self) -> str:
        cpus, gpus = self._cluster.cpus_per_actor, self._cluster.gpus_per_actor
        return counted(cpus, "CPU") + (f" and {gpus:g} GPU" if gpus else "")

    def _room(self) -> int:
        spared = 1 if self._cluster.decode == "remote" else 0  # keep a CPU for decoding tasks
        return self._view.size.room_for(self._cluster.cpus_per_actor + spared, self._cluster.gpus_per_actor)

    def _limit(self) -> int:
        return self._actor_limit.update(self._room())

    def _hire(self) -> None:
        supervisor = self._supervisor
        wanted = supervisor.wanted(self._limit())
        if len(supervisor.workers) >= wanted or not supervisor.may_hire() or not self._head.answers():
            return
        while len(supervisor.workers) < wanted:
            supervisor.workers.append(self._pool.create())

    def _release(self) -> None:
        """Release actors without work, pending actors first."""
        workers = self._supervisor.workers
        spare = len(workers) - self._supervisor.wanted(self._limit())
        if spare <= 0:
            return
        idle = sorted((worker for worker in workers if not worker.tasks), key=lambda worker: worker.ready)[:spare]
        self._pool.close(idle)
        for worker in idle:
            self._drop(worker)

    def _drop(self, worker: RayWorker) -> None:
        """Kill and forget an actor. The caller takes care of the actor's tasks."""
        lanes = self._cluster.shards_in_flight
        threads = lanes * self._cluster.decode_cpus if self._placement.remote else self._cluster.decode_threads
        self._supervisor.removed(worker, lanes=lanes, decode_threads=threads)
        self._placement.forget(worker)
        self._pool.kill(worker)

    def _decode_cpus(self, task: ShardTask) -> int:
        """Return the CPUs of the task that decodes a shard elsewhere, or 0 if the shard's actor decodes."""
        # Decode in the actor on retry: an image that kills a task looks like an outage, but an actor crash can be blamed on one image.
        if not self._placement.remote or task.search is not None or task.failures or task.suspect:
            return 0
        workers = self._supervisor.workers
        actors = Counter(worker.node_id for worker in workers if worker.ready)
        return self._placement.decode_cpus(actors, len(workers) - actors.total())

    def _heard(self, worker: RayWorker, what: str, reference: Any, reply: Future[str]) -> None:
        try:
            message = json.loads(reply.result())
        except RayError as error:
            if what == "network_rate" and isinstance(error, RayTaskError):
                self._placement.choose(None)
            else:
                self._lost(worker, reference, error)
            return
        if what == "open":
            self._opened(worker, message)
        elif what == "pulse":
            worker.awaits_pulse = False
            self._supervisor.heard(worker, message)
        elif what == "network_rate":
            bytes_per_second, image_bytes = message
            self._placement.choose(bytes_per_second / image_bytes if bytes_per_second else None)
        else:
            summary = self._supervisor.served(worker, worker.shards.pop(reference), message)
            if summary is not None and self._placement.measure(worker, summary, len(self._supervisor.workers)):
                self._pool.ask(worker, "network_rate")

    def _opened(self, worker: RayWorker, reply: dict[str, Any]) -> None:
        if reply["event"] == "broken":
            self._drop(worker)
            self._supervisor.broken(reply)
            return
        if reply["code"] != code_digest():
            raise ClusterError(
                f"node {reply['host']} has other tokenshards code than this driver (digest {reply['code']}, here {code_digest()}). "
                "Use one image for all nodes, or `tokenshards submit`, which brings its own code"
            )
        worker.node_id, worker.host = reply["node_id"], reply["host"]
        self._supervisor.became_ready(worker)

    def _send_pulses(self) -> None:
        """Ask actors that work or start for their heartbeat. A pending actor answers when its process has started."""
        now = time.monotonic()
        for worker in self._supervisor.workers:
            if (worker.tasks or not worker.ready) and not worker.awaits_pulse and now >= worker.pulse_due:
                worker.awaits_pulse, worker.pulse_due = True, now + self._beat
                self._pool.ask(worker, "pulse")

    def _watch_progress(self) -> None:
        now = time.monotonic()
        idle = now - self._supervisor.progress_at
        if idle > HEAD_SECONDS:
            self._head.check()
        if idle > self._cluster.idle_timeout_seconds and not self._supervisor.at_work():
            raise ClusterError(
                f"no shard made progress for {idle:,.0f} s (--give-up-after {self._cluster.idle_timeout_seconds:,.0f}): "
                f"{self._standing()}. Nothing was lost. Run the same command again: it continues"
            )
        if idle > WAITING_SECONDS and now - self._waiting_noted_at > WAITING_SECONDS:
            self._waiting_noted_at = now
            self._listener.noted(f"no progress for {idle:,.0f} s: {self._standing()}")

    def _standing(self) -> str:
        workers = self._supervisor.workers
        ready = sum(worker.ready for worker in workers)
        waiting = len(workers) - ready
        standing = (
            f"{counted(ready, 'actor is', 'actors are')} "
            f"at work and {waiting} wait{'s' if waiting == 1 else ''} for {self._actor_size()} each; the cluster has {self._view.size}"
        )
        lacking = self._view.lacks(self._cluster.cpus_per_actor, self._cluster.gpus_per_actor)
        return standing + (f"; {lacking}" if lacking else "")

    def _lost(self, worker: RayWorker, reference: Any, error: RayError) -> None:
        """A call failed in Ray: the actor is dead, the actor is unreachable, or the actor's code raised an unexpected error."""
        if worker not in self._supervisor.workers:
            return
        shard = worker.shards.pop(reference, None)
        if call_failed(error) and shard is not None:
            self._supervisor.failed(worker, shard, in_one_line(error))
        elif worker.ready or not machine_left(error):
            self._bury(worker, f"died ({in_one_line(error)})", left=machine_left(error))
        else:
            self._drop(worker)
            self._supervisor.pause_hiring(TICK_SECONDS)

    def _bury(self, worker: RayWorker, how: str, *, verdict: Verdict | None = None, left: bool = False) -> None:
        """Replace a dead or hanging actor. Blame the actor's shards, to find a shard that kills, unless the machine left."""
        self._drop(worker)
        if not worker.ready:
            self._supervisor.failed_to_start(ClusterError(f"actors cannot start: the last one {how}"))
            return
        blamed = not left and self._view.has(worker.node_id)
        if not blamed:
            self._listener.noted(
                f"node {worker.host} is gone, out of reach or out of memory, with {counted(len(worker.tasks), 'shard')} in flight", how=how
            )
        self._supervisor.lost(worker, how, verdict=verdict, blamed=blamed)
