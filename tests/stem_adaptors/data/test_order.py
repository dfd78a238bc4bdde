"""Orders of an epoch: each sample once, pure, and in windows that are read one after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.stem_adaptors.data.order import GlobalOrder, WindowedOrder, epoch_steps, rank_positions

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=14).filter(any)


@given(counts=COUNTS, window=st.integers(1, 5), lanes=st.integers(1, 6), epoch=st.integers(0, 3), shuffle=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_windowed_epoch_has_each_sample_once_and_each_window_in_turn(
    counts: list[int], window: int, lanes: int, epoch: int, shuffle: bool
) -> None:
    order = WindowedOrder(counts, seed=1, epoch=epoch, window_shards=window, lanes=lanes, shuffle=shuffle)
    size = sum(counts)
    positions = np.arange(size)
    samples, windows = order.samples(positions), order.windows(positions)
    np.testing.assert_array_equal(np.sort(samples), positions)
    shards = np.searchsorted(np.cumsum(counts), samples, side="right")
    met: list[int] = []
    for number in range(int(windows.max()) + 1):
        inside = np.flatnonzero(windows == number)
        assert set(order.shards_of(number)) == set(shards[inside].tolist()) and len(order.shards_of(number)) <= window
        assert order.last_position(number) == inside[-1]
        following = order.next_window(number)
        if following is None:
            assert number + 1 > windows.max() or order.lane_of(number + 1) == order.lane_of(number) + 1
        else:
            assert following == number + 1 and inside[-1] < np.flatnonzero(windows == following)[0]
        met += order.shards_of(number)
    assert sorted(met) == np.flatnonzero(counts).tolist()
    if not shuffle:
        np.testing.assert_array_equal(samples, positions)


@given(counts=COUNTS, window=st.integers(1, 5), lanes=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_positions_go_round_the_lanes_while_all_last_then_the_tails_follow(counts: list[int], window: int, lanes: int) -> None:
    order = WindowedOrder(counts, seed=1, epoch=0, window_shards=window, lanes=lanes)
    lane_of = np.array([order.lane_of(number) for number in order.windows(np.arange(sum(counts)))])
    sizes = np.bincount(lane_of, minlength=order.lanes)
    assert order.lanes == min(lanes, np.count_nonzero(counts)) and [order.lane_of(order.first_window(n)) for n in range(order.lanes)] == [
        *range(order.lanes)
    ]
    even = order.lanes * sizes.min()
    np.testing.assert_array_equal(lane_of[:even], np.arange(even) % order.lanes)
    assert (np.diff(lane_of[even:]) >= 0).all()
    assert not order.in_tails(even - 1) and order.in_tails(even)


def test_shards_are_dealt_evenly() -> None:
    order = WindowedOrder([5] * 22, seed=3, epoch=0, window_shards=3, lanes=4)
    dealt = [0] * 4
    for number in range(int(order.windows(np.arange(110)).max()) + 1):
        dealt[order.lane_of(number)] += len(order.shards_of(number))
    assert sorted(dealt) == [5, 5, 6, 6]


def test_orders_depend_on_seed_and_epoch_alone() -> None:
    positions = np.arange(3000)
    counts = [300] * 10

    def samples(kind: str, seed: int, epoch: int) -> list[int]:
        if kind == "global":
            return GlobalOrder(3000, seed=seed, epoch=epoch).samples(positions).tolist()
        return WindowedOrder(counts, seed=seed, epoch=epoch, window_shards=4).samples(positions).tolist()

    for kind in ("global", "windowed"):
        assert samples(kind, 0, 0) == samples(kind, 0, 0)
        assert sorted(samples(kind, 0, 0)) == positions.tolist()
        variants = [samples(kind, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
        assert all(np.mean(np.array(left) == np.array(right)) < 0.02 for left in variants for right in variants if left is not right)
    # Windows change from epoch to epoch in which shards they hold, and within.
    orders = [WindowedOrder(counts, seed=0, epoch=epoch, window_shards=4) for epoch in range(6)]
    assert len({frozenset(order.shards_of(0)) for order in orders}) > 1


@given(
    size=st.integers(1, 200),
    share=st.integers(1, 16),
    ranks=st.integers(1, 6),
    end=st.sampled_from(["drop", "pad"]),
    done=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_ranks_share_every_batch_and_the_end_policy_holds(size: int, share: int, ranks: int, end: str, done: int) -> None:
    batch = share * ranks
    steps = epoch_steps(size, batch, end)
    assert steps == (size // batch if end == "drop" else math.ceil(size / batch))
    done = min(done, steps)
    assert epoch_steps(size, batch, end, start=done * batch) == steps - done
    for step in range(steps):
        parts = [rank_positions(step * batch, batch, rank, ranks) for rank in range(ranks)]
        assert all(len(part) == share and (part % ranks == rank).all() for rank, part in enumerate(parts))
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(step * batch, (step + 1) * batch))


@pytest.mark.parametrize("window", [1, 64])
def test_a_billion_samples_cost_memory_of_shards_only(window: int) -> None:
    order = WindowedOrder(np.full(100_000, 10_000), seed=0, epoch=0, window_shards=window, lanes=8)
    positions = np.random.default_rng(0).integers(0, 10**9, 500)
    samples = order.samples(positions)
    assert len(np.unique(samples)) == len(np.unique(positions)) and samples.max() < 10**9
