"""Which operations of this process a store has failed at least once and that are being tried again.

The retry loop of a Store reports here. A supervisor listens, or a heartbeat thread asks, so that waiting for a store is never taken for a
worker that hangs. Everything here is per process and safe for threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["StoreWait", "listen", "report_over", "report_retry", "waiting"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreWait:
    """One operation of a store that failed and is tried again."""

    place: str
    """Which object, without credentials."""
    verb: str
    """`read`, `write`, `stat`, `list` or `delete`."""
    error: str
    """What the store said last, without credentials."""
    attempt: int
    """How many attempts have failed."""
    retries_left: int
    since: float
    """Clock `time.monotonic` when the first attempt failed."""


_guard = threading.Lock()
_waiting: dict[int, StoreWait] = {}
_listeners: list[Callable[[StoreWait | None], None]] = []


def report_retry(operation: int, wait: StoreWait) -> None:
    """Say that an attempt failed and another will follow; `operation` is any number that is unique while the operation lasts."""
    with _guard:
        _waiting[operation] = wait
        listeners = tuple(_listeners)
    for listener in listeners:
        listener(wait)


def report_over(operation: int) -> None:
    """Say that the operation has ended, well or not; listeners get None when it was the last one that waited."""
    with _guard:
        if _waiting.pop(operation, None) is None or _waiting:
            return
        listeners = tuple(_listeners)
    for listener in listeners:
        listener(None)


def waiting() -> StoreWait | None:
    """Return the operation that has waited longest, None while no store is waited for."""
    with _guard:
        return min(_waiting.values(), key=lambda wait: wait.since, default=None)


@contextmanager
def listen(listener: Callable[[StoreWait | None], None]) -> Iterator[None]:
    """Call `listener` with each retry, and with None when nothing waits any more; from the threads that wait, so it must be quick."""
    with _guard:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _guard:
            _listeners.remove(listener)
