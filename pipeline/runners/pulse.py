"""The heartbeat of a worker: the progress of its shards and the activities of its threads. All runners use the same heartbeat."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tokenshards.pipeline.activity import activities, slowest

if TYPE_CHECKING:
    from tokenshards.pipeline.job.shard_job import ShardProgress

__all__ = ["ALIVE", "Pulse"]

ALIVE = "alive"


class Pulse:
    """Counts of the shards at work in this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_work: dict[int, list[int]] = {}

    def begin(self, shard: int) -> None:
        """Begin to count a shard from zero."""
        with self._lock:
            self._at_work[shard] = [0, 0, 0]

    def add(self, shard: int, done: ShardProgress) -> None:
        """Add progress to the counts of a shard."""
        with self._lock:
            for index, value in enumerate((done.inputs, done.bytes_in, done.quarantined)):
                self._at_work[shard][index] += value

    def end(self, shard: int) -> None:
        """Forget the counts of a finished shard."""
        with self._lock:
            self._at_work.pop(shard, None)

    def message(self) -> dict[str, Any]:
        """Return the heartbeat: [shard, inputs, bytes, quarantined] of each shard, activities of the threads, slowest parts so far."""
        with self._lock:
            shards = [[shard, *counts] for shard, counts in self._at_work.items()]
        return {"event": ALIVE, "shards": shards, "doing": [found.to_json() for found in activities()], "slowest": slowest()}
