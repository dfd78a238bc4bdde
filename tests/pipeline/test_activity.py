"""What threads of a process do, as a watcher of it sees them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tokenshards.pipeline import activity
from tokenshards.pipeline.activity import DECODE, ENCODE, FETCH, SHARD, WAITING_FOR_STORE, Doing, activities, doing, relay, slowest, step
from tokenshards.pipeline.config import RetryConfig
from tokenshards.pipeline.errors import TransientStorageError
from tokenshards.pipeline.storage.store import Store


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(activity.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(activity, "_slowest", {})
    yield now
    assert activities() == []


def seen() -> dict[str, tuple[str, float]]:
    return {found.stage: (found.input, found.seconds) for found in activities()}


def test_stages_nest_and_the_inner_one_takes_no_time_of_the_outer(clock: list[float]) -> None:
    with doing(SHARD, "3"):
        clock[0] += 5
        with doing(FETCH, "a.jpg"):
            clock[0] += 7
            assert seen() == {FETCH: ("a.jpg", 7.0)}
        clock[0] += 1
        assert seen() == {SHARD: ("3", 1.0)}
    assert slowest() == {FETCH: 7.0, SHARD: 1.0}


def test_a_micro_batch_begins_the_stage_anew(clock: list[float]) -> None:
    step()  # outside any stage it does nothing
    with doing(ENCODE):
        for seconds in (2.0, 4.0, 3.0):
            clock[0] += seconds
            assert seen()[ENCODE][1] == seconds
            step()
    assert slowest() == {ENCODE: 4.0}


def test_the_longest_of_each_stage_is_told(clock: list[float]) -> None:
    ready, end = threading.Barrier(3), threading.Event()

    def decode(name: str) -> None:
        with doing(DECODE, name):
            ready.wait()
            end.wait()

    first = threading.Thread(target=decode, args=("old",))
    first.start()
    time.sleep(0.05)
    clock[0] += 9
    second = threading.Thread(target=decode, args=("new",))
    second.start()
    ready.wait()
    assert seen()[DECODE][1] == 9.0 or seen()[DECODE][0] == "old"
    end.set()
    first.join()
    second.join()


def test_what_another_process_does_is_shown_in_place_of_the_wait_for_it(clock: list[float]) -> None:
    with doing(SHARD, "3"):
        clock[0] += 5
        relay([Doing(stage=DECODE, input="far.jpg", seconds=2.0)])
        clock[0] += 1
        assert seen() == {DECODE: ("far.jpg", 3.0)}
        step()
        assert seen() == {SHARD: ("3", 0.0)}
        relay([Doing(stage=WAITING_FOR_STORE, input="s3://b/far.jpg", seconds=2.0)])
        clock[0] += 59
        assert seen() == {WAITING_FOR_STORE: ("s3://b/far.jpg", 61.0)}
        clock[0] += 2
        assert seen() == {SHARD: ("3", 61.0)}, "a process that reports nothing may hang, so it is not excused by its last report"


def test_every_attempt_at_a_remote_store_is_a_wait_with_the_retries_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = Store("memory://waits", retry=RetryConfig(attempts=3, first_delay_seconds=0.0)), []

    def fail(*_: Any) -> None:
        told.extend((found.stage, found.input, found.retries_left) for found in activities())
        raise OSError("away")

    monkeypatch.setattr(store._remote, "read", fail)
    with doing(FETCH, "x.jpg"), pytest.raises(TransientStorageError):
        store.read("x.jpg")
    assert told == [(WAITING_FOR_STORE, "memory://waits/x.jpg", left) for left in (2, 1, 0)]


def test_a_request_beyond_every_bound_of_its_client_is_no_wait_for_the_store_any_more(clock: list[float]) -> None:
    with doing(FETCH, "x.jpg"), doing(WAITING_FOR_STORE, "s3://b/x.jpg", retries_left=2, bound_seconds=600) as waiting:
        clock[0] += 599
        waiting.attempt(1)
        clock[0] += 599
        assert seen() == {WAITING_FOR_STORE: ("s3://b/x.jpg", 1198.0)}
        clock[0] += 2
        assert seen() == {FETCH: ("x.jpg", 1200.0)}
    with doing(WAITING_FOR_STORE, "s3://b/log", bound_seconds=600):
        clock[0] += 601
        assert seen() == {}, "nobody else is excused by it any more"
