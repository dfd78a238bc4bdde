"""The limit of requests in flight from a process to one store: a fixed number, halved each time the store asks to slow down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

__all__ = ["MOST", "RequestLimit", "is_throttling", "shared_limit", "status_of"]

MOST = 32
CUT_PAUSE_SECONDS = 1.0
"""Pause after a cut: requests already in flight may still fail, and they must not cut the limit again."""
RECOVERY_ROUNDS = 8
"""The limit rises by one after RECOVERY_ROUNDS * limit requests without a complaint."""
_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "BandwidthLimitExceeded"}

_guard = threading.Lock()


class RequestLimit:
    """A thread-safe limit of requests in flight. It starts at `most`, `throttled` halves it, and it recovers slowly."""

    def __init__(self, *, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._free = threading.Condition()
        self._limit = most
        self._in_flight = 0
        self._cut_at = float("-inf")
        self._since_change = 0

    @property
    def value(self) -> int:
        """Requests allowed in flight now."""
        return self._limit

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one place among the requests in flight; wait until a place is free."""
        with self._free:
            while self._in_flight >= self._limit:
                self._free.wait()
            self._in_flight += 1
        try:
            yield
        finally:
            with self._free:
                self._in_flight -= 1
                self._since_change += 1
                if self._limit < self._most and self._since_change >= RECOVERY_ROUNDS * self._limit:
                    self._limit, self._since_change = self._limit + 1, 0
                self._free.notify_all()

    def throttled(self) -> None:
        """Halve the limit, at most once a second, because the store asked to slow down."""
        with self._free:
            now = self._clock()
            if now - self._cut_at < CUT_PAUSE_SECONDS:
                return
            self._cut_at, self._since_change = now, 0
            self._limit = max(1, self._limit // 2)


_limits: WeakValueDictionary[Hashable, RequestLimit] = WeakValueDictionary()


def shared_limit(store: Hashable, *, most: int = MOST) -> RequestLimit:
    """Return the one limit of this process for a store. It lives as long as a caller holds it, because a table may name a million hosts."""
    with _guard:
        found = _limits.get((store, most))
        if found is None:
            found = _limits[store, most] = RequestLimit(most=most)
        return found


def status_of(error: BaseException) -> tuple[int, str]:
    """Return HTTP status and error code of a client's error or of its causes, (0, "") if none has them."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status or 0), str(response.get("Error", {}).get("Code", ""))
        if isinstance(code := getattr(response, "status_code", None), int):
            return code, ""
        for name in ("status", "status_code", "code"):
            value = getattr(seen, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value, ""
        seen = seen.__cause__ or seen.__context__
    return 0, ""


def is_throttling(error: BaseException) -> bool:
    """Return whether an error means that the store wants fewer requests."""
    status, code = status_of(error)
    return status in (429, 503) or code in _CODES
