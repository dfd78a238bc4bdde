"""Orders of an epoch: pure functions from a position to a sample, given the seed, the epoch and a few parameters.

Batch size, ranks and workers do not matter here, so they can change between two runs. Samples are numbered 0 .. N - 1 in shard order.
Shapes: B positions or samples, S shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.canonical import keyed_hash64
from tokenshards.stem_adaptors.data.permutation import Permutation

__all__ = ["GlobalOrder", "Ints", "WindowedOrder", "drawn_views", "epoch_steps", "rank_positions"]

Ints: TypeAlias = npt.NDArray[np.int64]


def epoch_steps(size: int, batch_size: int, end: str, *, start: int = 0) -> int:
    """Return the global batches from position `start` to the end of an epoch of `size` positions.

    `drop` leaves out the samples that do not fill a batch; `pad` fills the last batch with repeats.
    """
    rest = max(size - start, 0)
    return rest // batch_size if end == "drop" else -(-rest // batch_size)


def rank_positions(start: int, batch_size: int, rank: int, world_size: int) -> Ints:
    """Return the positions of one rank in the global batch that begins at `start`: every `world_size`-th position, from `rank` on."""
    return np.arange(start + rank, start + batch_size, world_size, dtype=np.int64)


def _key(seed: int, epoch: int, purpose: str) -> int:
    return keyed_hash64(f"order {seed}", f"{epoch} {purpose}")


def drawn_views(samples_B: Ints, *, seed: int, epoch: int, views: int) -> Ints:
    """Return the view of each sample in an epoch: 0 to `views` - 1, a hash of seed, epoch and sample."""
    words = samples_B.astype(np.uint64)
    for key in (_key(seed, epoch, "views"), _key(seed, epoch, "views again")):
        words ^= np.uint64(key)
        # The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words ^= words >> np.uint64(31)
    return ((words >> np.uint64(32)) * np.uint64(views) >> np.uint64(32)).astype(np.int64)


class GlobalOrder:
    """One permutation over all samples of an epoch."""

    def __init__(self, size: int, *, seed: int, epoch: int) -> None:
        self._permutation = Permutation(size, _key(seed, epoch, "global"))

    def samples(self, positions_B: Ints) -> Ints:
        """Return the sample at each position."""
        return self._permutation(positions_B)


class WindowedOrder:
    """A permutation of shards, then of the samples within each window of `window_shards` shards.

    Shuffled shards are dealt to `lanes`; the consecutive shards of a lane make its windows. Position p belongs to lane p mod lanes while
    all lanes last. The tails of the longer lanes follow, one after the other. So a rank whose stride is a multiple of the lanes reads one
    lane only, apart from the tails. Memory: O(S). Without a shuffle there is one lane, and samples come as stored.
    """

    def __init__(
        self, counts_S: Sequence[int] | Ints, *, seed: int, epoch: int, window_shards: int, lanes: int = 1, shuffle: bool = True
    ) -> None:
        counts = np.asarray(counts_S, np.int64)
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        shards = np.flatnonzero(counts)
        self.lanes = max(min(lanes if shuffle else 1, len(shards)), 1)
        """Lanes that have at least one shard."""
        if shuffle and len(shards):
            shards = shards[Permutation(len(shards), _key(seed, epoch, "windowed shards"))(np.arange(len(shards)))]
        dealt = [shards[lane :: self.lanes] for lane in range(self.lanes)]
        # All lanes, one after the other, make a line of N places; windows and shards are pieces of that line.
        self._shards = np.concatenate(dealt)
        self._first_sample = (np.cumsum(counts) - counts)[self._shards]
        self._shard_ends = np.cumsum(counts[self._shards])
        self._shard_starts = self._shard_ends - counts[self._shards]
        shards_before = np.cumsum([0, *map(len, dealt)])
        places = np.append(self._shard_starts, self._shard_ends[-1:])
        self._lane_starts = places[shards_before]
        lane_sizes = np.diff(self._lane_starts)
        self._shortest = int(lane_sizes.min()) if len(lane_sizes) else 0
        self._tail_ends = np.cumsum(lane_sizes - self._shortest)
        self._tail_starts = self._tail_ends - (lane_sizes - self._shortest)
        windows = [-(-len(lane) // window_shards) for lane in dealt]
        self._lane_windows = np.cumsum([0, *windows])
        self._first_shards = np.concatenate(
            [np.arange(count) * window_shards + before for count, before in zip(windows, shards_before[:-1], strict=True)]
            + [shards_before[-1:]]
        )
        self._window_starts = places[self._first_shards]
        self._permutation = lru_cache(maxsize=4 * self.lanes)(self._window_permutation)

    def windows(self, positions_B: Ints) -> Ints:
        """Return the number of the window that holds each position; the windows of a lane have consecutive numbers."""
        return self._windows_at(self._places(positions_B))

    def samples(self, positions_B: Ints) -> Ints:
        """Return the sample at each position."""
        places = self._places(positions_B)
        if self._shuffle:
            windows = self._windows_at(places)
            for window in np.unique(windows).tolist():
                inside = np.flatnonzero(windows == window)
                start = self._window_starts[window]
                places[inside] = start + self._permutation(window)(places[inside] - start)
        shards = np.searchsorted(self._shard_ends, places, side="right")
        samples: Ints = self._first_sample[shards] + places - self._shard_starts[shards]
        return samples

    def shards_of(self, window: int) -> tuple[int, ...]:
        """Return the indices of a window's shards."""
        return tuple(self._shards[self._first_shards[window] : self._first_shards[window + 1]].tolist())

    def lane_of(self, window: int) -> int:
        """Return the lane of a window."""
        return int(np.searchsorted(self._lane_windows, window, side="right")) - 1

    def next_window(self, window: int) -> int | None:
        """Return the window after this one in its lane."""
        return window + 1 if window + 1 < self._lane_windows[self.lane_of(window) + 1] else None

    def first_window(self, lane: int) -> int:
        """Return the first window of a lane."""
        return int(self._lane_windows[lane])

    def last_position(self, window: int) -> int:
        """Return the last position of the epoch that falls into a window."""
        lane = self.lane_of(window)
        at = int(self._window_starts[window + 1] - 1 - self._lane_starts[lane])
        if at < self._shortest:
            return at * self.lanes + lane
        return self._shortest * self.lanes + int(self._tail_starts[lane]) + at - self._shortest

    def in_tails(self, position: int) -> bool:
        """Return whether the shortest lane has ended before a position."""
        return position >= self._shortest * self.lanes

    def _places(self, positions_B: Ints) -> Ints:
        if self.lanes == 1:
            return positions_B.copy()
        even = self._shortest * self.lanes
        beyond = positions_B - even
        tails = np.minimum(np.searchsorted(self._tail_ends, beyond, side="right"), self.lanes - 1)
        at_tail = self._lane_starts[tails] + self._shortest + beyond - self._tail_starts[tails]
        at_even = self._lane_starts[positions_B % self.lanes] + positions_B // self.lanes
        places: Ints = np.where(beyond < 0, at_even, at_tail)
        return places

    def _windows_at(self, places: Ints) -> npt.NDArray[Any]:
        return np.searchsorted(self._window_starts, places, side="right") - 1

    def _window_permutation(self, window: int) -> Permutation:
        size = int(self._window_starts[window + 1] - self._window_starts[window])
        return Permutation(size, _key(self._seed, self._epoch, f"window {window}"))
