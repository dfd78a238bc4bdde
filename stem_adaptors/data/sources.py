"""One dataset, or a part of it, as an endless line of draws: draw k is position k mod N of epoch k // N of the dataset's own order.

A sample is an image and comes once an epoch. Where an image has several views, epoch and sample draw one of them; the order `sequential`
reads view 0.

Shapes: B draws, N samples, S shards, V views.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.decoded import DecodedSet
from tokenshards.stem_adaptors.data.order import GlobalOrder, WindowedOrder, drawn_views
from tokenshards.stem_adaptors.data.selection import Selection, sample_count
from tokenshards.stem_adaptors.data.windows import Window, WindowStore

__all__ = ["Rows", "Source", "drawn_rows", "join_rows", "open_source"]

Ints: TypeAlias = npt.NDArray[np.int64]
Places: TypeAlias = Any
"""Places among B samples: an index array, or slice(None) for all."""
At: TypeAlias = tuple[int, int]
"""Epoch and number of a window."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The tokens, labels and row numbers of some draws."""

    tokens: TokenBatch
    labels_B: Ints
    """Indices into the class table of the dataset itself."""
    rows_B: Ints
    maps_BHW: npt.NDArray[Any] | None = None
    """Label maps, where they are wanted."""


class Source(Protocol):
    """Samples by draw. Draws should rise from call to call; going back only costs a reload of windows."""

    def take(self, draws_B: Ints) -> Rows:
        """Return the samples at some draws."""

    def close(self) -> None:
        """Stop the work in the background."""


def open_source(
    data: TokenDataset | Selection, config: LoaderConfig, world_size: int, *, shared: bool, maps: MaskFormat | None = None
) -> Source:
    """Open a dataset or selection in the order of the config. `shared`: other processes of this machine read the same windows.

    `maps`: format of the label maps, where they are wanted. Raises ConfigError where the cache budget is too small for the data, and the
    errors of decoding.
    """
    return _GlobalSource(data, config, maps) if config.order == "global" else _WindowedSource(data, config, world_size, shared, maps)


class _GlobalSource:
    def __init__(self, data: TokenDataset | Selection, config: LoaderConfig, maps: MaskFormat | None) -> None:
        dataset, self._selected = _split(data)
        self._size, self._seed, self._views = sample_count(data), config.seed, dataset.views
        self._decoded = DecodedSet.open(dataset, cache_dir=config.cache_dir, cache_gb=config.cache_gb, maps=maps)
        self._order = lru_cache(maxsize=4)(self._order_of)

    def take(self, draws_B: Ints) -> Rows:
        epochs_B, positions_B = np.divmod(draws_B, self._size)
        rows_B = np.empty_like(positions_B)
        for epoch, places in _groups(epochs_B):
            rows_B[places] = self._rows(epoch, positions_B[places])
        return Rows(self._decoded.take(rows_B), self._decoded.labels_N[rows_B], rows_B, self._decoded.take_maps(rows_B))

    def close(self) -> None:
        pass

    def _rows(self, epoch: int, positions_B: Ints) -> Ints:
        samples_B = self._order(epoch).samples(positions_B)
        first_B = samples_B * self._views if self._selected is None else self._selected[samples_B]
        return drawn_rows(first_B, self._seed, epoch, self._views)

    def _order_of(self, epoch: int) -> GlobalOrder:
        return GlobalOrder(self._size, seed=self._seed, epoch=epoch)


class _WindowedSource:
    """Holds one window of each lane that is being read, while the store loads the next window."""

    def __init__(
        self, data: TokenDataset | Selection, config: LoaderConfig, world_size: int, shared: bool, maps: MaskFormat | None
    ) -> None:
        dataset, self._selected = _split(data)
        self._size, self._config, self._views = sample_count(data), config, dataset.views
        images_S = np.array([entry.rows for entry in dataset.shards], np.int64) // self._views
        self._counts_S = data.counts_S if isinstance(data, Selection) else images_S
        self._shuffle = config.order == "windowed"
        # A rank's positions are world_size apart in a batch, and batch_size apart from batch to batch: they fall into every gcd-th lane.
        every = config.lanes if self._shuffle else 1
        self._store = WindowStore(
            dataset,
            cache_dir=config.cache_dir,
            cache_gb=config.cache_gb,
            window_shards=config.window_shards,
            lanes=every // math.gcd(every, config.batch_size, world_size),
            shared_windows=2 * every if shared else 0,
            maps=maps,
        )
        self._order = lru_cache(maxsize=4)(self._order_of)
        self._held: dict[At, Window] = {}
        self._coming: set[At] = set()
        """Windows that the store is loading."""
        self._newest = -1

    def take(self, draws_B: Ints) -> Rows:
        newest = int(draws_B.max())
        if newest < self._newest:
            self._forget(math.inf)
        self._newest = newest
        needed = self._needed(draws_B)
        self._forget(newest, keep=needed.keys())
        parts: list[tuple[Places, Rows]] = []
        for at, (places, positions) in needed.items():
            samples = self._order(at[0]).samples(positions)
            rows = samples * self._views if self._selected is None else self._selected[samples]
            if self._shuffle:
                rows = drawn_rows(rows, self._config.seed, at[0], self._views)
            window = self._window(at, int(positions[0]))
            parts.append((places, Rows(window.take(rows), window.labels(rows), rows, window.take_maps(rows))))
            if self._last_draw(at) <= newest:
                self._store.release(self._held.pop(at))
        return join_rows(parts, len(draws_B))

    def _needed(self, draws_B: Ints) -> dict[At, tuple[Places, Ints]]:
        """Return, for each window that holds some of the draws, the places of these draws and their positions in the epoch."""
        every = np.arange(len(draws_B))
        found = {}
        for epoch, in_epoch in _groups(draws_B // self._size):
            positions = draws_B[in_epoch] - epoch * self._size
            for number, in_window in _groups(self._order(epoch).windows(positions)):
                found[epoch, number] = every[in_epoch][in_window], positions[in_window]
        return found

    def close(self) -> None:
        self._store.close()
        self._held.clear()

    def _window(self, at: At, position: int) -> Window:
        window = self._held.get(at)
        if window is None:
            window = self._held[at] = self._store.load(self._shards_of(at))
            self._coming.discard(at)
            following = self._following(at, position)
            if following is not None and self._last_draw(following) > self._newest:
                self._coming.add(following)
                self._store.prefetch(self._shards_of(following))
        return window

    def _following(self, at: At, position: int) -> At | None:
        """Return the window that follows in the lane of `at`, entered at a position."""
        epoch, order = at[0], self._order(at[0])
        number = order.next_window(at[1])
        if number is not None:
            return epoch, number
        # Every rank reads the tails, but a lane goes on in the next epoch only for the ranks that own it.
        if order.in_tails(position) or not self._shuffle:
            return None
        return epoch + 1, self._order(epoch + 1).first_window(order.lane_of(at[1]))

    def _forget(self, newest: float, *, keep: Collection[At] = ()) -> None:
        """Release the windows that have no draw after `newest`, apart from `keep`."""
        for at in [at for at in self._held if self._last_draw(at) <= newest and at not in keep]:
            self._store.release(self._held.pop(at))
        for at in [at for at in self._coming if self._last_draw(at) <= newest and at not in keep]:
            self._coming.remove(at)
            self._store.release(self._store.load(self._shards_of(at)))

    def _shards_of(self, at: At) -> tuple[int, ...]:
        return self._order(at[0]).shards_of(at[1])

    def _last_draw(self, at: At) -> int:
        return at[0] * self._size + self._order(at[0]).last_position(at[1])

    def _order_of(self, epoch: int) -> WindowedOrder:
        config = self._config
        return WindowedOrder(
            self._counts_S,
            seed=config.seed,
            epoch=epoch,
            window_shards=config.window_shards,
            lanes=config.lanes,
            shuffle=self._shuffle,
        )


def drawn_rows(first_rows_B: Ints, seed: int, epoch: int, views: int) -> Ints:
    """Return, for the rows of view 0 of some samples, the rows of the views that the epoch draws."""
    return first_rows_B if views == 1 else first_rows_B + drawn_views(first_rows_B // views, seed=seed, epoch=epoch, views=views)


def join_rows(parts: list[tuple[Places, Rows]], size: int) -> Rows:
    """Put rows at their places among `size` rows. Ragged rows are padded with zeros to the longest of all."""
    if len(parts) == 1:
        return parts[0][1]
    first = parts[0][1].tokens
    sites = max(rows.tokens.ids_BLQ.shape[1] for _, rows in parts)
    ids_BQL = np.zeros((size, first.ids_BLQ.shape[2], sites), first.ids_BLQ.dtype)
    lengths_B = None if first.lengths_B is None else np.zeros(size, first.lengths_B.dtype)
    shapes_BD = None if first.shapes_BD is None else np.zeros((size, first.shapes_BD.shape[1]), first.shapes_BD.dtype)
    labels_B, rows_B = np.empty(size, np.int64), np.empty(size, np.int64)
    maps = parts[0][1].maps_BHW
    maps_BHW = None if maps is None else np.empty((size, *maps.shape[1:]), maps.dtype)
    for places, rows in parts:
        tokens = rows.tokens
        ids_BQL[places, :, : tokens.ids_BLQ.shape[1]] = tokens.ids_BLQ.transpose(0, 2, 1)
        if lengths_B is not None and tokens.lengths_B is not None:
            lengths_B[places] = tokens.lengths_B
        if shapes_BD is not None and tokens.shapes_BD is not None:
            shapes_BD[places] = tokens.shapes_BD
        labels_B[places], rows_B[places] = rows.labels_B, rows.rows_B
        if maps_BHW is not None and rows.maps_BHW is not None:
            maps_BHW[places] = rows.maps_BHW
    return Rows(TokenBatch(ids_BQL.transpose(0, 2, 1), lengths_B, shapes_BD), labels_B, rows_B, maps_BHW)


def _split(data: TokenDataset | Selection) -> tuple[TokenDataset, Ints | None]:
    return (data.dataset, data.rows_n) if isinstance(data, Selection) else (data, None)


def _groups(values_B: Ints) -> Iterator[tuple[int, Places]]:
    """Yield each value and the places that hold it, in the order of first appearance."""
    if values_B[0] == values_B.min() == values_B.max():
        yield int(values_B[0]), slice(None)
        return
    values, first = np.unique(values_B, return_index=True)
    for value in values[np.argsort(first)].tolist():
        yield value, np.flatnonzero(values_B == value)
