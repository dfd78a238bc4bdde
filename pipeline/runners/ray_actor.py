"""The actor that turns shard tasks into commits on a Ray cluster.

Commands and replies are JSON text of at most a kilobyte. Only decoded pixels travel as arrays, from a decoding task to an actor.
"""

from __future__ import annotations

import json
import platform
import socket
import threading
import time
from collections.abc import Generator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.util.metrics import Counter

from tokenshards.pipeline.activity import STARTING, doing
from tokenshards.pipeline.code_identity import code_digest
from tokenshards.pipeline.errors import TokenshardsError, TransientStorageError
from tokenshards.pipeline.fault_injection import crash_point
from tokenshards.pipeline.job.batches import DecodedBatch
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary
from tokenshards.pipeline.job.shard_job import shard_batches
from tokenshards.pipeline.malloc import keep_freed_memory
from tokenshards.pipeline.runners.base import broken_event
from tokenshards.pipeline.runners.pulse import Pulse
from tokenshards.pipeline.runners.ray_decode import QUEUE_SECONDS, remote_batches
from tokenshards.pipeline.runners.shard_server import ShardServer
from tokenshards.pipeline.storage.jsonl_log import RunLog

__all__ = ["ShardActor"]

LOG_SECONDS = 15.0
NETWORK_PROBE_BYTES = 16 << 20
_COUNTERS = {
    "images_total": "Inputs seen in committed shards",
    "bytes_total": "Encoded bytes of the inputs in committed shards",
    "shards_total": "Shards committed",
    "quarantined_total": "Inputs that failed permanently",
    "stage_seconds": "Seconds of work, by stage",
}
_LABELS = ("out", "run")
"""Labels of every counter. They tell apart two runs that share a dataset or a cluster."""


class ShardActor:
    """Holds an opened job and serves several shards at once. Meanwhile another thread answers `pulse`, the heartbeat."""

    def __init__(self, name: str, job: str, decode_threads: int) -> None:
        self._name = name
        self._job = job
        self._decode_threads = decode_threads
        self._pulse = Pulse()
        self._log: RunLog | None = None
        self._flushed = time.monotonic()

    def open(self) -> str:
        """Open the job. Return `ready` with the identity of the actor, or `broken` with the reason."""
        keep_freed_memory()
        job = JobSpec.from_json(json.loads(self._job))
        try:
            with doing(STARTING):
                crash_point("starting")
                self._server = self._open_server(job)
        except TokenshardsError as error:
            return json.dumps(broken_event(error))
        out = self._server.context.out
        self._log = RunLog(out, job.run_uuid, f"worker-{self._name}")
        self._counters = {
            name: Counter(f"tokenshards_{name}", description=text, tag_keys=(*_LABELS, "stage") if name == "stage_seconds" else _LABELS)
            for name, text in _COUNTERS.items()
        }
        for counter in self._counters.values():
            counter.set_default_tags({"out": out.url, "run": job.run_uuid})
        node_id = ray.get_runtime_context().get_node_id()
        self._log.add("worker ready", host=socket.gethostname(), node_id=node_id)
        identity = {"node_id": node_id, "host": socket.gethostname(), "code": code_digest(), "python": platform.python_version()}
        return json.dumps({"event": "ready", **identity})

    def _open_server(self, job: JobSpec) -> ShardServer:
        return ShardServer(job, decode_threads=self._decode_threads)

    def serve(self, text: str, decode_cpus: int = 0) -> str:
        """Do one command of a shard and return the event. If `decode_cpus` is above 0, a task with so many CPUs decodes on any node."""
        command = json.loads(text)
        shard = int(command["shard"])
        self._pulse.begin(shard)
        started = time.monotonic()
        try:
            batches = partial(self._remote_batches, decode_cpus) if decode_cpus else None
            event = self._server.serve(command, partial(self._pulse.add, shard), batches)
        finally:
            self._pulse.end(shard)
        self._record(command, event, time.monotonic() - started)
        return json.dumps(event)

    def _record(self, command: dict[str, Any], event: dict[str, Any], seconds: float) -> None:
        summary = event.get("summary")
        details = {("error" if key == "message" else key): value for key, value in event.items() if key not in ("event", "summary")}
        details |= summary or {}
        self._tell(event["event"], shard=command["shard"], attempt=command["attempt"], wall_seconds=round(seconds, 3), **details)
        if summary is None or event.get("by_another"):  # only the run that committed a shard counts the shard
            return
        self._count("images_total", ShardSummary(**summary).inputs)
        self._count("bytes_total", summary["bytes_in"])
        self._count("shards_total", 1)
        self._count("quarantined_total", summary["quarantined"])
        for stage, spent in summary["seconds"].items():
            self._count("stage_seconds", spent, stage=stage)

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray's counters refuse an increment of 0
            self._counters[name].inc(value, tags=tags)

    def _tell(self, message: str, **details: Any) -> None:
        if self._log is not None:
            self._log.add(message, **details)

    def pulse(self) -> str:
        """Return the heartbeat, also while `open` is running."""
        now = time.monotonic()
        if now - self._flushed > LOG_SECONDS:
            self._flushed = now
            threading.Thread(target=self._flush, name="log", daemon=True).start()  # a failing store must not look like a dead worker
        return json.dumps(self._pulse.message())

    def close(self) -> None:
        """Publish the rest of the log. Then the driver kills the actor."""
        self._flush()

    def _flush(self) -> None:
        try:
            if self._log is not None:
                self._log.flush()
        except TransientStorageError as error:  # the run does not depend on the log; the next flush tries again
            self._tell("the log could not be written", error=str(error))

    def _remote_batches(self, decode_cpus: int, shard: int, killers: frozenset[str]) -> Generator[DecodedBatch]:
        """Yield the batches that a task on any node decodes. If no node has room for the task in time, decode the batches here."""
        if not (yield from remote_batches(self._job, shard, killers, decode_cpus)):
            self._tell("decoded here, because no node had free CPUs for the decoding task", shard=shard, waited_seconds=QUEUE_SECONDS)
            yield from shard_batches(self._server.context, shard, killers)

    def network_rate(self) -> str:
        """Return the bytes per second that this actor receives from a task on another node, and the bytes of an image's decoded views."""
        plan = self._server.context.plan
        return json.dumps([self._measure_network(), 3 * plan.spec.preprocess.size**2 * plan.views.count])

    def _measure_network(self) -> float:
        here = ray.get_runtime_context().get_node_id()
        elsewhere = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
        if not elsewhere:
            return 0.0
        largest = max(elsewhere, key=lambda node: float(node["Resources"].get("CPU", 0)))  # the most likely node for decoding
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(largest["NodeID"], soft=False)
        probe = ray.remote(_zeros).options(num_cpus=0, scheduling_strategy=strategy, max_retries=0)
        ray.get(probe.remote(1))  # starts the process
        reference = probe.remote(NETWORK_PROBE_BYTES)
        ray.wait([reference], fetch_local=False)
        started = time.perf_counter()
        ray.get(reference)
        return NETWORK_PROBE_BYTES / (time.perf_counter() - started)


def _zeros(count: int) -> npt.NDArray[np.uint8]:
    return np.zeros(count, np.uint8)
