"""When a host of a table counts as dead, when it is asked again, and how many hosts are remembered."""

from __future__ import annotations

import pytest

from tokenshards.pipeline.errors import Reason
from tokenshards.pipeline.sources.hosts import health as host_health
from tokenshards.pipeline.sources.hosts.health import FIRST_REST_SECONDS, LONGEST_REST_SECONDS, HostHealth


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> HostHealth:
    return HostHealth(clock)


def fail(health: HostHealth, host: str = "h", *, begun: float = 100.0, patience: int = 1) -> None:
    health.failed(host, Reason.REFUSED, "refuses", begun=begun, patience=patience)


def test_images_in_a_row(health: HostHealth, clock: Clock) -> None:
    for _ in range(2):
        fail(health, patience=3)
    assert health.death("h") is None
    health.answered("h")
    clock.now += 1
    for _ in range(2):
        fail(health, begun=clock.now, patience=3)
    assert health.death("h") is None, "an answer begins the row anew"
    fail(health, begun=clock.now, patience=3)
    death = health.death("h")
    assert death is not None and (death.reason, death.words, death.images) == (Reason.REFUSED, "refuses", 3)
    assert health.death("other") is None


def test_a_failure_that_began_before_the_last_answer_proves_nothing(health: HostHealth, clock: Clock) -> None:
    clock.now = 130.0
    health.answered("h")
    fail(health, begun=100.0)
    assert health.death("h") is None
    fail(health, begun=131.0)
    assert health.death("h") is not None


def test_one_caller_at_a_time_asks_again_and_less_and_less_often(health: HostHealth, clock: Clock) -> None:
    fail(health)
    assert not health.may_try_again("h") and not health.may_try_again("unknown")
    rests = []
    for _ in range(10):
        since = clock.now
        while not health.may_try_again("h"):
            clock.now += 1.0
        assert not health.may_try_again("h")
        rests.append(clock.now - since)
    assert rests[:3] == [FIRST_REST_SECONDS, 2 * FIRST_REST_SECONDS, 4 * FIRST_REST_SECONDS] and rests[-1] == LONGEST_REST_SECONDS
    health.answered("h")
    assert health.death("h") is None


def test_a_pause_outlives_an_answer_and_holds_back_the_next_try(health: HostHealth, clock: Clock) -> None:
    health.wants_quiet("h", 60.0)
    health.wants_quiet("h", 10.0)
    health.answered("h")
    assert health.quiet_seconds("h") == 60.0 and health.quiet_seconds("other") == 0.0
    fail(health, begun=101.0)
    clock.now += 59.0
    assert not health.may_try_again("h")
    clock.now += 2.0
    assert health.may_try_again("h") and health.quiet_seconds("h") == 0.0


def test_hosts_are_bounded(health: HostHealth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_health, "MOST_HOSTS", 10)
    for number in range(50):
        fail(health, f"h{number}")
    assert [number for number in range(50) if health.death(f"h{number}")] == list(range(40, 50))
