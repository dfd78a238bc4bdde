"""Objects that were read just now: they prove that a store, or the network, is there although one object cannot be read."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tokenshards.pipeline.activity import WAITING_FOR_STORE, doing
from tokenshards.pipeline.errors import BadInput, TokenshardsError

__all__ = ["PROBES", "PROBE_SECONDS", "Witnesses", "answers_for_others", "shown_as_waiting"]

PROBES = 8
PROBE_SECONDS = 60.0
"""Time after a failure within which all its probes must begin."""


class Witnesses:
    """Recently read objects: they prove that a store answers, and they are the best ones to probe. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[tuple[str, float]] = deque(maxlen=4 * PROBES)
        self.judging = threading.Lock()
        """The probing thread holds this lock; the others wait for its result."""
        self.away_at = float("-inf")
        """`time.monotonic()` of the last time that no probe succeeded."""

    def note(self, name: str, begun: float) -> None:
        """Record that an object was read by a request that began at `begun`."""
        with self._lock:
            self._seen.append((name, begun))

    def since(self, failed_at: float, fits: Callable[[str], bool]) -> bool:
        """Return whether a request for a fitting object began after `failed_at` and succeeded; an earlier request would prove nothing."""
        with self._lock:
            return any(begun > failed_at and fits(name) for name, begun in reversed(self._seen))

    def names(self) -> list[str]:
        """Return the names of the objects read, latest first."""
        with self._lock:
            return list(dict.fromkeys(name for name, _ in reversed(self._seen)))


def answers_for_others(
    witnesses: Witnesses, fits: Callable[[str], bool], candidates: Iterable[str], probe: Callable[[str], object]
) -> bool:
    """After a failure, return whether one of the candidates, or another fitting object, can be read now."""
    failed_at = time.monotonic()
    with witnesses.judging:
        if witnesses.since(failed_at, fits):
            return True
        if witnesses.away_at > failed_at:
            return False
        for name in candidates:
            begun = time.monotonic()
            if begun > failed_at + PROBE_SECONDS:
                break
            try:
                probe(name)
            except (TokenshardsError, BadInput, OSError):
                continue
            witnesses.note(name, begun)
            return True
        witnesses.away_at = time.monotonic()
        return False


@contextmanager
def shown_as_waiting(place: str) -> Iterator[None]:
    """Report the operation as waiting for its store while probes run, as between two attempts."""
    with doing(WAITING_FOR_STORE, place, retries_left=0):
        yield
