"""The meaning of a heartbeat: a slow worker, a hanging worker, a worker that waits for its store."""

from __future__ import annotations

import pytest

from tokenshards.pipeline.activity import DECODE, ENCODE, FETCH, PACK, QUEUE, SHARD, STARTING, WAITING_FOR_STORE, WRITE, Doing
from tokenshards.pipeline.runners.deadlines import SILENT, Deadlines, State

STALL, BEAT = 300.0, 5.0


def doing(stage: str, seconds: float, retries_left: int | None = None) -> Doing:
    return Doing(stage=stage, input="x", seconds=seconds, retries_left=retries_left)


def state(*found: Doing, silent: float = 0.0, ready: bool = True, slowest: dict[str, float] | None = None) -> State:
    deadlines = Deadlines(STALL, BEAT)
    deadlines.measure(slowest or {})
    return deadlines.judge(found, silent, ready=ready).state


@pytest.mark.parametrize(
    ("stage", "seconds", "slowest", "expected"),
    [
        (DECODE, 299, {}, State.ALIVE),
        (DECODE, 301, {}, State.HANGING),
        (DECODE, 301, {DECODE: 40.0}, State.SLOW),
        (DECODE, 401, {DECODE: 40.0}, State.HANGING),
        (ENCODE, 3500, {}, State.SLOW),
        (ENCODE, 3601, {}, State.HANGING),
        (ENCODE, 301, {ENCODE: 0.2}, State.HANGING),
        (ENCODE, 5990, {ENCODE: 600.0}, State.SLOW),
        (WRITE, 301, {}, State.HANGING),
        (QUEUE, 3500, {QUEUE: 0.1}, State.SLOW),
        (FETCH, 301, {}, State.HANGING),
        (PACK, 3500, {PACK: 1.0}, State.SLOW),
        (SHARD, 601, {}, State.HANGING),
    ],
)
def test_each_stage_has_a_deadline_that_scales_with_what_was_measured(
    stage: str, seconds: float, slowest: dict[str, float], expected: State
) -> None:
    assert state(doing(stage, seconds), slowest=slowest) is expected


def test_what_one_worker_measured_counts_for_all() -> None:
    deadlines = Deadlines(STALL, BEAT)
    deadlines.measure({ENCODE: 50.0})
    deadlines.measure({ENCODE: 2.0})
    assert deadlines.limit_seconds(ENCODE) == 500.0


def test_a_worker_that_has_not_encoded_yet_may_be_slower_than_the_others() -> None:
    deadlines = Deadlines(STALL, BEAT)
    deadlines.measure({ENCODE: 1.0})
    for found, silent in (([doing(ENCODE, 3500)], 0.0), ([], 3500.0)):
        assert deadlines.judge(found, silent, ready=True, first=True).state is not State.HANGING
        assert deadlines.judge(found, silent, ready=True).state is State.HANGING
    assert deadlines.judge([doing(ENCODE, 3601)], 0.0, ready=True, first=True).state is State.HANGING


def test_a_wait_for_the_store_is_never_a_death_and_excuses_who_waits_for_it() -> None:
    waiting = doing(WAITING_FOR_STORE, 1e5, 3)
    assert state(waiting) is State.WAITING_FOR_STORE
    for stage in (FETCH, SHARD, STARTING):
        assert state(waiting, doing(stage, 1e5)) is State.WAITING_FOR_STORE, stage
    for stage in (DECODE, QUEUE, ENCODE, PACK, WRITE):
        assert state(waiting, doing(stage, 1e5)) is State.HANGING, f"a thread in {stage} waits for no other thread"
    assert state(doing(WAITING_FOR_STORE, 0.1, 7)) is State.ALIVE, "each read of a healthy store is such a wait"
    assert state(waiting, ready=False) is State.WAITING_FOR_STORE


def test_a_thread_that_waits_for_another_does_not_hang() -> None:
    assert state(doing(SHARD, 1000), doing(DECODE, 3)) is State.ALIVE


def test_silence_has_the_patience_of_an_encode_that_keeps_the_lock() -> None:
    assert state(doing(FETCH, 1), silent=3500) is not State.HANGING
    assert state(doing(FETCH, 1), silent=3601) is State.HANGING
    assert state(silent=601, slowest={ENCODE: 0.1}) is State.HANGING
    assert state(silent=601, slowest={ENCODE: 61.0}) is not State.HANGING
    assert state(silent=1199, ready=False) is not State.HANGING and state(silent=1201, ready=False) is State.HANGING


@pytest.mark.parametrize(
    ("found", "silent", "blames"),
    [(doing(DECODE, 1e6), 0, True), (doing(ENCODE, 1e6), 0, True), (doing(WRITE, 1e6), 0, False), (doing(FETCH, 1e6), 0, False)],
)
def test_only_a_hang_in_decode_or_encode_blames_an_input(found: Doing, silent: float, blames: bool) -> None:
    assert Deadlines(STALL, BEAT).judge([found], silent, ready=True).blames_input is blames


def test_a_silent_worker_is_told_as_such() -> None:
    verdict = Deadlines(STALL, BEAT).judge([], 1e6, ready=True)
    assert verdict.blames_input and verdict.doing is not None and verdict.doing.stage == SILENT
    assert "gave no sign of life" in verdict.describe()
