"""The actor that turns shard tasks into commits on a Ray cluster, and the task that decodes for it elsewhere.

Commands and replies are JSON text of at most a kilobyte; only decoded pixels travel as arrays, between a decoding task and an actor.
"""

from __future__ import annotations

import contextlib
import json
import platform
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.util.metrics import Counter

from tokenshards.pipeline.code_identity import code_digest
from tokenshards.pipeline.errors import ClusterError, TokenshardsError, TransientStorageError, UnreadableObjectError
from tokenshards.pipeline.job.batches import DecodedBatch, DecodedRow
from tokenshards.pipeline.job.context import open_inputs
from tokenshards.pipeline.job.shard_job import InputContext, ShardProgress, shard_batches
from tokenshards.pipeline.malloc import keep_freed_memory
from tokenshards.pipeline.runners.base import JobSpec
from tokenshards.pipeline.runners.shard_server import ShardServer
from tokenshards.pipeline.storage.jsonl_log import RunLog

__all__ = ["ShardActor"]

LOG_SECONDS = 15.0
QUEUE_SECONDS = 60.0
"""How long a decoding task may wait for free CPUs."""
BATCHES_AHEAD = 4
"""Decoded batches of one shard that may wait in the object store."""
NETWORK_PROBE_BYTES = 16 << 20


class ShardActor:
    """Holds an opened job and serves its shards, several side by side; `pulse` answers while they are at work."""

    def __init__(self, name: str, job: str, decode_threads: int) -> None:
        self._name = name
        self._job = job
        self._decode_threads = decode_threads
        self._lock = threading.Lock()
        self._at_work: dict[int, list[float]] = {}  # shard -> inputs, bytes, quarantined, time of the last sign
        self._flushed = time.monotonic()

    def open(self) -> str:
        """Open the job and say who this is: `ready`, or `broken` with the reason."""
        keep_freed_memory()
        job = JobSpec.from_json(json.loads(self._job))
        try:
            self._server = self._open_server(job)
        except TokenshardsError as error:
            kind = "transient" if isinstance(error, TransientStorageError) else "fatal"
            return json.dumps({"event": "broken", "kind": kind, "message": str(error)})
        self._log = RunLog(self._server.context.out, job.run_uuid, f"worker-{self._name}")
        self._counters = {
            name: Counter(f"tokenshards_{name}", description=text, tag_keys=("stage",) if name == "stage_seconds" else ())
            for name, text in (
                ("images_total", "Inputs seen in committed shards"),
                ("bytes_total", "Encoded bytes of these inputs"),
                ("shards_total", "Shards committed"),
                ("quarantined_total", "Inputs that failed for good"),
                ("stage_seconds", "Seconds of work, by stage"),
            )
        }
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
        with self._lock:
            self._at_work[shard] = [0, 0, 0, time.monotonic()]

        def progress(done: ShardProgress) -> None:
            with self._lock:
                counts = self._at_work[shard]
                counts[0] += done.inputs
                counts[1] += done.bytes_in
                counts[2] += done.quarantined
                counts[3] = time.monotonic()

        started = time.monotonic()
        try:
            event = self._server.serve(command, progress, partial(self._remote_batches, decode_cpus, progress) if decode_cpus else None)
        finally:
            with self._lock:
                del self._at_work[shard]
        self._record(command, event, time.monotonic() - started)
        return json.dumps(event)

    def _record(self, command: dict[str, Any], event: dict[str, Any], seconds: float) -> None:
        summary = event.get("summary")
        details = {("error" if key == "message" else key): value for key, value in event.items() if key not in ("event", "summary")}
        details |= summary or {}
        self._log.add(event["event"], shard=command["shard"], attempt=command["attempt"], wall_seconds=round(seconds, 3), **details)
        if summary is None:
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

    def pulse(self) -> str:
        """Return for each shard at work its counts so far and the seconds since its last sign of progress."""
        now = time.monotonic()
        with self._lock:
            shards = [[shard, *map(int, counts[:3]), round(now - counts[3], 1)] for shard, counts in self._at_work.items()]
        if now - self._flushed > LOG_SECONDS:
            self._flushed = now
            threading.Thread(target=self._flush, name="log", daemon=True).start()  # a store that fails must not look like a dead worker
        return json.dumps({"shards": shards})

    def close(self) -> None:
        """Publish what is left of the log; the driver kills the actor afterwards."""
        self._flush()

    def _flush(self) -> None:
        try:
            self._log.flush()
        except TransientStorageError as error:  # a log decides nothing; the next flush tries again
            self._log.add("the log could not be written", error=str(error))

    def _remote_batches(
        self, decode_cpus: int, on_progress: Callable[[ShardProgress], None], shard: int, killers: frozenset[str]
    ) -> Generator[DecodedBatch]:
        """Yield the batches that a task on any node decodes; they are decoded here where no node has room for it in time."""
        task = ray.remote(
            num_cpus=decode_cpus,
            num_returns="streaming",
            max_retries=0,
            scheduling_strategy="SPREAD",
            _generator_backpressure_num_objects=BATCHES_AHEAD,
        )(_decode)
        stream = task.remote(self._job, shard, sorted(killers), decode_cpus, code_digest())
        try:
            if not _has_begun(stream, on_progress):
                self._log.add("decoded here, since no node had CPUs free for it", shard=shard, waited_seconds=QUEUE_SECONDS)
                ray.cancel(stream)
                yield from shard_batches(self._server.context, shard, killers)
                return
            for reference in stream:
                images_BHWC, rest = ray.get(reference)
                del reference  # its pixels leave the object store when the batch is encoded, not one batch later
                if rest.get("unreadable") is not None:
                    raise UnreadableObjectError(rest["outage"], objects=tuple(rest["unreadable"]))
                if rest.get("outage") is not None:
                    raise TransientStorageError(rest["outage"])
                if rest.get("refusal") is not None:
                    raise ClusterError(rest["refusal"])
                rows = [DecodedRow(**row) for row in rest.pop("rows")]
                yield DecodedBatch(images_BHWC, rows=rows, **rest)
        finally:
            ray.cancel(stream)

    def network_rate(self) -> str:
        """Return the bytes per second that this actor receives from a task on another node, and the bytes of a picture's decoded views."""
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


@lru_cache(maxsize=2)
def _opened(job: str, threads: int) -> InputContext:
    return open_inputs(JobSpec.from_json(json.loads(job)), decode_threads=threads)


def _has_begun(stream: ray.ObjectRefGenerator, on_progress: Callable[[ShardProgress], None]) -> bool:
    """Wait until a decoding task says that it began, False after QUEUE_SECONDS: what waits for free CPUs does not hang."""
    given_up = time.monotonic() + QUEUE_SECONDS
    while not ray.wait([stream], timeout=min(5.0, QUEUE_SECONDS))[0]:
        if time.monotonic() >= given_up:
            return False
        on_progress(ShardProgress(0, 0, 0))
    ray.get(next(stream))
    return True


def _decode(job: str, shard: int, killers: list[str], threads: int, code: str) -> Iterator[tuple[npt.NDArray[np.uint8], dict[str, Any]]]:
    """Yield an empty item at once, then the batches of a shard as pixels and plain values.

    An outage, or that this node must not decode, is the last item, because it is no error of Ray's.
    """
    nothing = np.zeros(0, np.uint8)
    yield nothing, {}
    try:
        if code != code_digest():
            raise ClusterError(
                f"node {socket.gethostname()} has other tokenshards code than its actor (digest {code_digest()}, there {code}). "
                "Use one image for all nodes, or `tokenshards submit`, which brings its own code"
            )
        with contextlib.closing(shard_batches(_opened(job, threads), shard, frozenset(killers))) as batches:
            for batch in batches:
                rest = {name: getattr(batch, name) for name in ("slots", "failed", "inputs", "bytes_in", "fetch_seconds", "decode_seconds")}
                yield batch.images_BHWC, {**rest, "rows": [asdict(row) for row in batch.rows]}
    except UnreadableObjectError as error:
        yield nothing, {"outage": str(error), "unreadable": list(error.objects)}
    except TransientStorageError as error:
        yield nothing, {"outage": str(error)}
    except TokenshardsError as error:
        yield nothing, {"refusal": str(error)}
