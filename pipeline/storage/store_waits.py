"""The storage operations of this process that failed at least once and are being retried.

The retry loop of `Store` reports here. A supervisor listens, or a heartbeat thread asks, so that a worker that waits for a store never
counts as hung. Everything here is per process and thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["StoreWait", "listen", "report_over", "report_retry", "waiting"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreWait:
    """One storage operation that failed and is being retried."""

    place: str
    """Name of the object, without credentials."""
    verb: str
    """`read`, `write`, `stat`, `list` or `delete`."""
    error: str
    """The store's last error, without credentials."""
    attempt: int
    """Number of failed attempts."""
    retries_left: int
    since: float
    """`time.monotonic()` when the first attempt failed."""


_guard = threading.Lock()
_waiting: dict[int, StoreWait] = {}
_listeners: list[Callable[[StoreWait | None], None]] = []


def report_retry(operation: int, wait: StoreWait) -> None:
    """Report that an attempt failed and another will follow; `operation` is a number that is unique while the operation lasts."""
    with _guard:
        _waiting[operation] = wait
        listeners = tuple(_listeners)
    for listener in listeners:
        listener(wait)


def report_over(operation: int) -> None:
    """Report that the operation ended, with or without success; listeners get None if no other operation waits."""
    with _guard:
        if _waiting.pop(operation, None) is None or _waiting:
            return
        listeners = tuple(_listeners)
    for listener in listeners:
        listener(None)


def waiting() -> StoreWait | None:
    """Return the operation that has waited longest, None if no operation waits."""
    with _guard:
        return min(_waiting.values(), key=lambda wait: wait.since, default=None)


@contextmanager
def listen(listener: Callable[[StoreWait | None], None]) -> Iterator[None]:
    """Call `listener` with each retry, and with None once nothing waits. The waiting threads call it, so it must be quick."""
    with _guard:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _guard:
            _listeners.remove(listener)
