"""Decode on any node for an actor. A task streams batches, and shows its activities while no batch is ready."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from tokenshards.pipeline.activity import Doing, activities, relay, step
from tokenshards.pipeline.code_identity import code_digest
from tokenshards.pipeline.errors import ClusterError, TokenshardsError, TransientStorageError, UnreadableObjectError
from tokenshards.pipeline.job.batches import DecodedBatch, DecodedRow
from tokenshards.pipeline.job.context import open_inputs
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.job.shard_job import InputContext, shard_batches

__all__ = ["QUEUE_SECONDS", "remote_batches"]

QUEUE_SECONDS = 60.0
"""How long a decoding task may wait for free CPUs."""
BATCHES_AHEAD = 4
"""Decoded batches of one shard that may wait in the object store."""
ALIVE_SECONDS = 2.0
"""How often a task reports its activities while its next batch is not ready."""
_FIELDS = ("slots", "failed", "untaken", "remarks", "inputs", "bytes_in", "fetch_seconds", "decode_seconds")

_Item = tuple[npt.NDArray[np.uint8], dict[str, Any]]


def remote_batches(job: str, shard: int, killers: frozenset[str], decode_cpus: int) -> Generator[DecodedBatch, None, bool]:
    """Yield the batches that a task on any node decodes. Return False, without a batch, if no node had room for the task in time."""
    task = ray.remote(
        num_cpus=decode_cpus,
        num_returns="streaming",
        max_retries=0,
        scheduling_strategy="SPREAD",
        _generator_backpressure_num_objects=BATCHES_AHEAD,
    )(_decode)
    stream = task.remote(job, shard, sorted(killers), decode_cpus, code_digest())
    try:
        if not _has_begun(stream):
            return False
        for reference in stream:
            images_BHWC, rest = ray.get(reference)
            del reference  # so that the pixels leave the object store after this batch, not one batch later
            if "doing" in rest:
                relay([Doing.from_json(value) for value in rest["doing"]])
                continue
            step()
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
    return True


@lru_cache(maxsize=2)
def _opened(job: str, threads: int) -> InputContext:
    return open_inputs(JobSpec.from_json(json.loads(job)), decode_threads=threads)


def _has_begun(stream: ray.ObjectRefGenerator) -> bool:
    """Wait until a decoding task has begun. Return False after QUEUE_SECONDS. A task that waits for free CPUs does not hang."""
    given_up = time.monotonic() + QUEUE_SECONDS
    while not ray.wait([stream], timeout=min(ALIVE_SECONDS, QUEUE_SECONDS))[0]:
        if time.monotonic() >= given_up:
            return False
        step()
    ray.get(next(stream))
    return True


def _decode(job: str, shard: int, killers: list[str], threads: int, code: str) -> Iterator[_Item]:
    """Yield an empty item at once, then the batches of a shard as pixels and plain values, and between batches the activities.

    An outage, or a node that must not decode, is reported in the last item, because it is not an error of Ray.
    """
    nothing = np.zeros(0, np.uint8)
    yield nothing, {}
    with contextlib.closing(_Ahead(_batches(job, shard, killers, threads, code))) as items:
        while (item := items.take(ALIVE_SECONDS)) is not None:
            yield item


class _Ahead:
    """A thread takes items from an iterator, so that the consumer can report its wait for the next item."""

    def __init__(self, items: Iterator[_Item]) -> None:
        self._items = items
        self._ready: queue.Queue[_Item | BaseException | None] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def take(self, seconds: float) -> _Item | None:
        """Return the next item, or the activities of this process if no item is ready in time. Return None after the last item."""
        try:
            item = self._ready.get(timeout=seconds)
        except queue.Empty:
            return np.zeros(0, np.uint8), {"doing": [found.to_json() for found in activities()]}
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the thread, because Ray reuses this process."""
        self._stopped.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)

    def _work(self) -> None:
        last: BaseException | None = None
        try:
            for item in self._items:
                self._ready.put(item)
                if self._stopped.is_set():
                    break
        except BaseException as error:  # the consumer of the items raises the error
            last = error
        self._ready.put(last)


def _batches(job: str, shard: int, killers: list[str], threads: int, code: str) -> Iterator[_Item]:
    nothing = np.zeros(0, np.uint8)
    try:
        if code != code_digest():
            raise ClusterError(
                f"node {socket.gethostname()} has other tokenshards code than its actor (digest {code_digest()}, there {code}). "
                "Use one image for all nodes, or `tokenshards submit`, which brings its own code"
            )
        with contextlib.closing(shard_batches(_opened(job, threads), shard, frozenset(killers))) as batches:
            for batch in batches:
                rest = {name: getattr(batch, name) for name in _FIELDS}
                yield batch.images_BHWC, {**rest, "rows": [asdict(row) for row in batch.rows]}
    except UnreadableObjectError as error:
        yield nothing, {"outage": str(error), "unreadable": list(error.objects)}
    except TransientStorageError as error:
        yield nothing, {"outage": str(error)}
    except TokenshardsError as error:
        yield nothing, {"refusal": str(error)}
