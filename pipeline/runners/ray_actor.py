"""The actor that turns shard tasks into commits on a Ray cluster.

Commands and replies are JSON text of at most a kilobyte; only decoded pixels travel as arrays, between a decoding task and an actor.
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
from tokenshards.pipeline.job.job_spec import JobSpec
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
    "bytes_total": "Encoded bytes of these inputs",
    "shards_total": "Shards committed",
    "quarantined_total": "Inputs that failed for good",
    "stage_seconds": "Seconds of work, by stage",
}
_LABELS = ("out", "run")
"""Of every counter: two runs that share a dataset, or a cluster, are told apart."""


class ShardActor:
    """Holds an opened job and serves its shards, several side by side; a thread of its own answers `pulse`, the heartbeat, meanwhile."""

    def __init__(self, name: str, job: str, decode_threads: int) -> None:
        self._name = name
        self._job = job
        self._decode_threads = decode_threads
        self._pulse = Pulse()
        self._log: RunLog | None = None
        self._flushed = time.monotonic()

    def open(self) -> str:
        """Open the job and say who this is: `ready`, or `broken` with the reason."""
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
        """Do one command of a shard and return the event; `decode_cpus` above 0 decodes in a task of so many CPUs, on any node."""
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
        if summary is None or event.get("by_another"):  # what another run committed is its work
            return
        self._count("images_total", summary["inputs_seen"])
        self._count("bytes_total", summary["bytes_in"])
        self._count("shards_total", 1)
        self._count("quarantined_total", summary["quarantined"])
        for stage, spent in summary["seconds"].items():
            self._count("stage_seconds", spent, stage=stage)

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # a counter of Ray refuses to stay as it is
            self._counters[name].inc(value, tags=tags)

    def _tell(self, message: str, **details: Any) -> None:
        if self._log is not None:
            self._log.add(message, **details)

    def pulse(self) -> str:
        """Return the heartbeat; it comes while the job is opened, too."""
        now = time.monotonic()
        if now - self._flushed > LOG_SECONDS:
            self._flushed = now
            threading.Thread(target=self._flush, name="log", daemon=True).start()  # a store that fails must not look like a dead worker
        return json.dumps(self._pulse.message())

    def close(self) -> None:
        """Publish what is left of the log; the driver kills the actor afterwards."""
        self._flush()

    def _flush(self) -> None:
        try:
            if self._log is not None:
                self._log.flush()
        except TransientStorageError as error:  # a log decides nothing; the next flush tries again
            self._tell("the log could not be written", error=str(error))

    def _remote_batches(self, decode_cpus: int, shard: int, killers: frozenset[str]) -> Generator[DecodedBatch]:
        """Yield the batches that a task on any node decodes; they are decoded here where no node has room for it in time."""
        if not (yield from remote_batches(self._job, shard, killers, decode_cpus)):
            self._tell("decoded here, since no node had CPUs free for it", shard=shard, waited_seconds=QUEUE_SECONDS)
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
        largest = max(elsewhere, key=lambda node: float(node["Resources"].get("CPU", 0)))  # where decoding would most likely go
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
