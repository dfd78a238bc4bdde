"""What each thread of this process does at this moment. The driver that watches the process reads it.

A thread enters a stage with `doing(...)`. Stages nest: while a fetch waits for a store, the thread is in the stage of the store. To
enter and leave a stage takes about a microsecond, so we can do it for every image. No code here takes a lock: each thread writes only its
own entry.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from threading import get_ident
from typing import Any

__all__ = [
    "DECODE",
    "ENCODE",
    "FETCH",
    "PACK",
    "QUEUE",
    "SHARD",
    "STARTING",
    "WAITING_FOR_STORE",
    "WRITE",
    "Doing",
    "activities",
    "doing",
    "measure",
    "relay",
    "slowest",
    "step",
]

STARTING = "starting"
"""The worker opens the job: plan, tokenizer, network weights."""
FETCH = "fetch"
DECODE = "decode"
QUEUE = "queue"
"""A batch is given to a device that works in the background. The ids of the batch are not there yet."""
ENCODE = "encode"
PACK = "pack"
"""The rows of a shard become the bytes of a Parquet file."""
WRITE = "write"
WAITING_FOR_STORE = "waiting_for_store"
"""The thread makes a request to a store, or pauses before the next attempt. The client of a store limits the time of each request."""
SHARD = "shard"
"""Work on a shard outside the other stages, such as the wait for another thread."""
RELAYED_SECONDS = 60.0
"""A relayed wait for a store counts for so long. A process that reports nothing for longer may hang, so its last report is no excuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What one thread does, in plain values that travel as JSON."""

    stage: str
    input: str
    """Name of the input, of the object in a store, or of the shard."""
    seconds: float
    """Time since the stage began or since the last `step`. All attempts of a store operation count."""
    retries_left: int | None = None
    """Remaining attempts of a store operation; None for other stages."""

    def to_json(self) -> list[Any]:
        """Return a short JSON array."""
        return [self.stage, self.input, round(self.seconds, 3), self.retries_left]

    @classmethod
    def from_json(cls, value: Iterable[Any], *, older_by: float = 0.0) -> Doing:
        """Return the activity that `to_json` described, `older_by` seconds later."""
        stage, name, seconds, retries_left = value
        return cls(stage=stage, input=name, seconds=seconds + older_by, retries_left=retries_left)


_now: dict[int, doing] = {}
_slowest: dict[str, float] = {}


class doing:  # noqa: N801  # a context manager made by contextlib takes three times as long
    """A stage of the thread that enters it. An attempt longer than `bound_seconds` counts as the outer stage."""

    _relayed: list[Doing] | None = None
    _relayed_at = 0.0

    def __init__(self, stage: str, name: str = "", *, retries_left: int | None = None, bound_seconds: float = float("inf")) -> None:
        self.stage = stage
        self.input = name
        self.retries_left = retries_left
        self._bound_seconds = bound_seconds

    def __enter__(self) -> doing:
        self._thread = get_ident()
        self._outer = _now.get(self._thread)
        self.since = self._attempt_since = time.monotonic()
        _now[self._thread] = self
        return self

    def __exit__(self, *error: object) -> None:
        now = time.monotonic()
        measure(self.stage, now - self.since)
        if self._outer is None:
            _now.pop(self._thread, None)
        else:
            self._outer.since = now  # the outer stage does not count the time of the inner stage
            _now[self._thread] = self._outer

    def attempt(self, retries_left: int) -> None:
        """Begin the next attempt of a store operation."""
        self.retries_left = retries_left
        self._attempt_since = time.monotonic()

    def seen(self, now: float) -> list[Doing]:
        """Return the activity of the thread, or the relayed activities of another process that works for the thread."""
        older_by = now - self._relayed_at
        relayed = [found for found in self._relayed or () if found.stage != WAITING_FOR_STORE or older_by <= RELAYED_SECONDS]
        if relayed:
            return [Doing.from_json(found.to_json(), older_by=older_by) for found in relayed]
        shown = self._outer if now - self._attempt_since > self._bound_seconds else self
        if shown is None:
            return []
        return [Doing(stage=shown.stage, input=shown.input, seconds=max(0.0, now - self.since), retries_left=shown.retries_left)]

    def relay(self, found: list[Doing]) -> None:
        """Show the activities of another process in place of this entry."""
        self.since = self._relayed_at = time.monotonic()
        self._relayed = found or None


def step() -> None:
    """End a part of this thread's current stage, such as one micro-batch, and begin the next part."""
    entry = _now.get(get_ident())
    if entry is not None:
        now = time.monotonic()
        measure(entry.stage, now - entry.since)
        entry.relay([])


def relay(found: list[Doing]) -> None:
    """Show the activities `found` of another process, for which this thread waits."""
    entry = _now.get(get_ident())
    if entry is not None:
        entry.relay(found)


def activities() -> list[Doing]:
    """Return the activities of all threads of this process: for each stage, the entry that has lasted longest."""
    now = time.monotonic()
    oldest: dict[str, Doing] = {}
    for entry in list(_now.values()):
        for found in entry.seen(now):
            if found.stage not in oldest or found.seconds > oldest[found.stage].seconds:
                oldest[found.stage] = found
    return list(oldest.values())


def slowest() -> dict[str, float]:
    """Return, for each stage, the seconds that its slowest part has taken in this process."""
    return {stage: round(seconds, 3) for stage, seconds in list(_slowest.items())}


def measure(stage: str, seconds: float) -> None:
    """Record that a part of a stage took so long."""
    if seconds > _slowest.get(stage, 0.0):
        _slowest[stage] = seconds
