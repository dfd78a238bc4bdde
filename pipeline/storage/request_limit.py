"""How many requests a process keeps in flight to one store: more while that helps, half as many when the store asks to slow down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

__all__ = ["AdaptiveLimit", "is_throttling", "shared_limit", "status_of"]

START = 16
MOST = 64
CUT_PAUSE_SECONDS = 1.0
"""Requests that were in flight when the limit was cut still fail: they do not count again."""
HOLD_WINDOWS = 8
WORTH_IT = 1.05
_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "BandwidthLimitExceeded"}

_limits: dict[Hashable, AdaptiveLimit] = {}
_guard = threading.Lock()


class AdaptiveLimit:
    """A limit of requests in flight; safe for threads.

    Additive growth: after each window of requests that used the limit up it is raised by an eighth, and lowered again, and held, where
    the rate did not rise by 5 %. Multiplicative decrease: halved, at most once a second, on `throttled`.
    """

    def __init__(self, *, start: int = START, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._free = threading.Condition()
        self._limit = start
        self._in_flight = 0
        self._cut_at = float("-inf")
        self._hold = 0
        self._before: tuple[int, float] | None = None
        """Limit and rate before the last raise, while that is on trial."""
        self._begin_window()

    @property
    def value(self) -> int:
        """Requests allowed in flight now."""
        return self._limit

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one place among the requests in flight, waiting for it where need be."""
        with self._free:
            while self._in_flight >= self._limit:
                self._used_up = True
                self._free.wait()
            self._in_flight += 1
        try:
            yield
        finally:
            with self._free:
                self._in_flight -= 1
                self._count += 1
                if self._count >= 2 * self._limit:
                    self._judge()
                self._free.notify_all()

    def throttled(self) -> None:
        """The store asked to slow down."""
        with self._free:
            now = self._clock()
            if now - self._cut_at < CUT_PAUSE_SECONDS:
                return
            self._cut_at = now
            self._limit = max(1, self._limit // 2)
            self._before, self._hold = None, HOLD_WINDOWS
            self._begin_window()

    def _judge(self) -> None:
        rate = self._count / max(1e-9, self._clock() - self._since)
        if self._used_up:
            if self._before is not None and rate < WORTH_IT * self._before[1]:
                self._limit, self._before, self._hold = self._before[0], None, HOLD_WINDOWS
            elif self._hold:
                self._hold -= 1
            else:
                self._before = self._limit, rate
                self._limit = min(self._most, self._limit + max(1, self._limit // 8))
        self._begin_window()

    def _begin_window(self) -> None:
        self._count, self._since, self._used_up = 0, self._clock(), False


def shared_limit(store: Hashable) -> AdaptiveLimit:
    """Return the one limit that this process has for a store."""
    with _guard:
        return _limits.setdefault(store, AdaptiveLimit())


def status_of(error: BaseException) -> tuple[int, str]:
    """Return HTTP status and error code of what a store's client raised, (0, "") where it tells none; causes are looked at too."""
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
