"""Results in order, a bound on those that wait, and an end that leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tokenshards.pipeline.thread_map import map_in_order


def test_results_come_in_order_and_few_are_made_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            made.append(item)
            yield item

    results = map_in_order(lambda item: item * item, items(), threads=3, ahead=4)
    for expected in range(20):
        assert next(results) == expected * expected
        assert len(made) <= expected + 1 + 4
    assert next(results, None) is None


def test_an_error_comes_at_its_item_and_drops_what_waits() -> None:
    asked: list[int] = []

    def odd(item: int) -> int:
        asked.append(item)
        if item == 2:
            raise ValueError("2 is even")
        return item

    results = map_in_order(odd, [1, 3, 2, *range(100)], threads=1, ahead=50)
    assert [next(results), next(results)] == [1, 3]
    with pytest.raises(ValueError, match="2 is even"):
        next(results)


def test_ctrl_c_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an outage each read in flight is tried for minutes."""
    release = threading.Event()

    def hangs(item: int) -> int:
        if item == 0:
            raise KeyboardInterrupt  # comes out where the result is awaited, as the real one does
        assert release.wait(30)
        return item

    before = set(threading.enumerate())  # other tests may have left idle threads
    results = map_in_order(hangs, [0, 1], threads=2, ahead=2)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert not release.is_set()
    waiting = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("ThreadPoolExecutor")]
    assert waiting, "it waited for the read in flight"
    release.set()
    for thread in waiting:
        thread.join()
