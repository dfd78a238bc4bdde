"""Which hosts of a table are known to be dead, so that their many images do not wait for them one by one.

A dead host is not asked for each image. It is asked again now and then, and lives again with its first answer.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from tokenshards.pipeline.errors import Reason

__all__ = ["Death", "HostHealth"]

FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 5.0, 300.0
"""How long a dead host is left alone before it is asked again. The time doubles from one try to the next."""
MOST_HOSTS = 20_000
"""Hosts to remember; a table may name a million."""


@dataclass(frozen=True, slots=True)
class Death:
    """Why a host counts as dead."""

    reason: Reason
    words: str
    images: int
    """Images in a row that it failed for."""


@dataclass(slots=True)
class _Host:
    answered_at: float = float("-inf")
    images: int = 0
    """Images in a row that it failed for."""
    death: Death | None = None
    rest_seconds: float = field(default_factory=lambda: FIRST_REST_SECONDS)
    ask_at: float = 0.0
    """When a dead host may be asked again."""
    quiet_until: float = 0.0
    """Until when the host asked for no requests (`Retry-After`)."""


class HostHealth:
    """How the hosts of this process are. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    def answered(self, host: str) -> None:
        """Record that a host gave an answer, be it that the object is missing or forbidden: it lives."""
        with self._lock:
            state = self._state(host)
            self._hosts[host] = _Host(answered_at=self._clock(), quiet_until=state.quiet_until)

    def failed(self, host: str, reason: Reason, words: str, *, begun: float, patience: int) -> None:
        """Record that a host failed for an image in all its attempts since `begun`, while other hosts answered.

        It counts as dead when it fails for `patience` images in a row.
        """
        with self._lock:
            state = self._state(host)
            if state.answered_at > begun:  # it answered for other images meanwhile
                return
            state.images += 1
            if state.death is None and state.images >= patience:
                state.death = Death(reason, words, state.images)
                state.ask_at = self._clock() + state.rest_seconds

    def death(self, host: str) -> Death | None:
        """Return why a host counts as dead, None if it does not."""
        found = self._hosts.get(host)
        return None if found is None else found.death

    def may_try_again(self, host: str) -> bool:
        """Return whether the caller, and nobody else for a while, shall ask a dead host whether it lives again."""
        with self._lock:
            state, now = self._hosts.get(host), self._clock()
            if state is None or now < max(state.ask_at, state.quiet_until):
                return False
            state.rest_seconds = min(LONGEST_REST_SECONDS, 2 * state.rest_seconds)
            state.ask_at = now + state.rest_seconds
            return True

    def wants_quiet(self, host: str, seconds: float) -> None:
        """Record that a host asked for no requests for so long."""
        with self._lock:
            state = self._state(host)
            state.quiet_until = max(state.quiet_until, self._clock() + seconds)

    def quiet_seconds(self, host: str) -> float:
        """Return how long a host still wants no requests."""
        found = self._hosts.get(host)
        return 0.0 if found is None else max(0.0, found.quiet_until - self._clock())

    def _state(self, host: str) -> _Host:
        state = self._hosts.setdefault(host, _Host())
        self._hosts.move_to_end(host)
        while len(self._hosts) > MOST_HOSTS:
            self._hosts.popitem(last=False)
        return state
