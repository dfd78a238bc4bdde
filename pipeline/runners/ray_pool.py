"""Create, call and kill actors, and collect their replies. This module makes no decisions."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from tokenshards.pipeline.config import RayConfig
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.named_code import ALLOW_PYTHON
from tokenshards.pipeline.runners.ray_actor import ShardActor
from tokenshards.pipeline.runners.shard_queue import ShardTask
from tokenshards.pipeline.runners.supervisor import Worker
from tokenshards.pipeline.tokenizers.config import GPU_ROWS

__all__ = ["ActorPool", "RayWorker"]

CLOSE_SECONDS = 5.0


class RayWorker(Worker):
    """An actor and its awaited replies."""

    def __init__(self, name: str, handle: Any) -> None:
        super().__init__(name=name)
        self.handle = handle
        self.node_id = ""
        self.shards: dict[Any, int] = {}
        """The shard of each awaited reply."""
        self.awaits_pulse = False
        self.pulse_due = 0.0


class ActorPool:
    """Creates the actors of one job and keeps track of every awaited reply."""

    def __init__(self, cluster: RayConfig, actor_class: type[ShardActor], job: JobSpec) -> None:
        # Store the arguments of all actors once. The text may hold credentials, so it must not appear in a name or a log.
        self._job = ray.put(json.dumps(job.to_json()))
        self._decode_threads = cluster.decode_threads
        self._actor_type = ray.remote(**_actor_options(cluster))(actor_class)
        self._calls: dict[Any, tuple[RayWorker, str]] = {}  # the actor and the call of every awaited reply
        self._replies: queue.SimpleQueue[tuple[Any, Future[str]]] = queue.SimpleQueue()  # a thread of Ray fills this queue

    def create(self) -> RayWorker:
        """Ask for an actor. The actor opens the job as soon as a node has room for the actor."""
        name = uuid.uuid4().hex[:12]
        worker = RayWorker(name, self._actor_type.remote(name, self._job, self._decode_threads))
        self._await(worker, "open", worker.handle.open.remote())
        return worker

    def serve(self, worker: RayWorker, task: ShardTask, decode_cpus: int) -> None:
        """Hand an actor the next command of a shard."""
        reference = worker.handle.serve.remote(json.dumps(task.command()), decode_cpus)
        worker.shards[reference] = task.shard
        self._await(worker, "serve", reference)

    def ask(self, worker: RayWorker, what: str) -> None:
        """Call `pulse` or `network_rate`. The actor answers both calls while it works."""
        self._await(worker, what, getattr(worker.handle, what).options(concurrency_group="control").remote())

    def close(self, workers: Sequence[RayWorker]) -> None:
        """Give actors a few seconds to publish the rest of their logs."""
        closing = [worker.handle.close.options(concurrency_group="control").remote() for worker in workers if worker.ready]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)

    def kill(self, worker: RayWorker) -> None:
        """End an actor and forget its replies."""
        for reference in [reference for reference, (owner, _) in self._calls.items() if owner is worker]:
            del self._calls[reference]
        with contextlib.suppress(RayError):
            ray.kill(worker.handle, no_restart=True)

    def replies(self, timeout_seconds: float) -> Iterator[tuple[RayWorker, str, Any, Future[str]]]:
        """Yield (actor, call, reference, reply) of the replies that have arrived. Wait up to `timeout_seconds` for the first."""
        with contextlib.suppress(queue.Empty):
            found = self._replies.get(timeout=timeout_seconds)
            while True:
                reference, reply = found
                worker, what = self._calls.pop(reference, (None, ""))
                if worker is not None:  # None if the actor was killed a moment ago
                    yield worker, what, reference, reply
                found = self._replies.get_nowait()

    def _await(self, worker: RayWorker, what: str, reference: Any) -> None:
        self._calls[reference] = worker, what
        # `ray.wait` would look at every awaited reply for each that arrives.
        reference.future().add_done_callback(partial(self._arrived, reference))

    def _arrived(self, reference: Any, reply: Future[str]) -> None:
        self._replies.put((reference, reply))


def _actor_options(cluster: RayConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_restarts": 0,
        "max_task_retries": 0,
        "num_cpus": cluster.cpus_per_actor,
        "num_gpus": cluster.gpus_per_actor,
        "max_concurrency": cluster.shards_in_flight,
        "concurrency_groups": {"control": 2},
    }
    # The user's settings on this machine count, not the settings of the nodes.
    if sent := {name: os.environ[name] for name in (ALLOW_PYTHON, GPU_ROWS) if os.environ.get(name)}:
        options["runtime_env"] = {"env_vars": sent}
    return options
