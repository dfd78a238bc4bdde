"""Windows of shards, decoded in memory, for the orders `windowed` and `sequential` and datasets of any size.

Shapes: B rows asked for. "Shards" are places in `dataset.shards`, "rows" are row numbers of the dataset in shard order.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.stem_adaptors.data.cache import GIGABYTE, ShardCopies, copies_folder, decoded_bytes
from tokenshards.stem_adaptors.data.decoded_rows import Arrays, DecodedRows, Rows, array_names, write_rows
from tokenshards.stem_adaptors.data.decoding import decode_shards, decoding_threads
from tokenshards.stem_adaptors.data.shared_windows import SharedWindows

__all__ = ["Window", "WindowStore"]


class Window:
    """The decoded rows of a few shards."""

    def __init__(
        self, shards: tuple[int, ...], first_rows: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], rows: DecodedRows
    ) -> None:
        self.shards = shards
        order = np.argsort(first_rows)
        self._first_rows, self._counts = first_rows[order], counts[order]
        self._places = (np.cumsum(counts) - counts)[order]
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows_B: Rows) -> TokenBatch:
        """Return a copy of the given dataset rows, in that order. Raises IndexError for a row outside of the window."""
        return self._rows.take(self._places_of(rows_B))

    def labels(self, rows_B: Rows) -> npt.NDArray[np.int64]:
        """Return the class indices of the given dataset rows."""
        return self._rows.labels_N[self._places_of(rows_B)]

    def take_maps(self, rows_B: Rows) -> npt.NDArray[Any] | None:
        """Return a copy [B, H, W] of the label maps of the given dataset rows; None where they were not asked for."""
        return self._rows.take_maps(self._places_of(rows_B))

    def _places_of(self, rows_B: Rows) -> Rows:
        shard_B = np.searchsorted(self._first_rows, rows_B, side="right") - 1
        within_B = rows_B - self._first_rows[shard_B]
        outside_B = (shard_B < 0) | (within_B >= self._counts[shard_B])
        if outside_B.any():
            raise IndexError(f"row {int(rows_B[outside_B][0])} is not in the window of shards {list(self.shards)}")
        places_B: Rows = self._places[shard_B] + within_B
        return places_B


class WindowStore:
    """Loads windows; a background thread loads the next one.

    Memory: the decoded rows of every window that is loaded or prefetched and not yet released, two windows per lane in use. Disk, for a
    remote dataset: the encoded shards of as many windows, which later runs and other processes reuse. Local shards are read in place.
    With `shared_windows`, decoded windows are files that all processes of this machine map, at most that many: each is decoded once.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        cache_dir: str | None,
        cache_gb: float,
        window_shards: int,
        lanes: int = 1,
        shared_windows: int = 0,
        maps: MaskFormat | None = None,
        threads: int | None = None,
    ) -> None:
        """`lanes`: number of lanes that this process reads; `maps`: format of the label maps, where they are wanted.

        Raises ConfigError where `cache_gb` cannot hold two windows of each lane.
        """
        self.dataset, self._maps = dataset, maps
        counts = np.array([entry.rows for entry in dataset.shards], np.int64)
        self._counts, self._first_rows = counts, np.cumsum(counts) - counts
        _require_budget(dataset, np.sort(counts)[::-1], cache_gb, window_shards, 2 * lanes, maps)
        sizes = sorted((entry.size for entry in dataset.shards), reverse=True)
        folder = None if dataset.is_local else copies_folder(dataset, cache_dir) / "shards"
        self._copies = ShardCopies(dataset, folder, sum(sizes[: 2 * lanes * window_shards]))
        self._shared: SharedWindows | None = None
        if shared_windows:
            folder = copies_folder(dataset, cache_dir) / ("windows" if maps is None else "windows_with_maps")
            self._shared = SharedWindows(folder, array_names(dataset.spec, maps), shared_windows)
        self._threads = threads or decoding_threads()
        self._loading: dict[tuple[int, ...], Future[Window]] = {}
        self._closed = threading.Event()

    def __enter__(self) -> WindowStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begin to load a window in the background, unless its load has begun. `load` raises the errors."""
        key = tuple(shards)
        if key not in self._loading and not self._closed.is_set():
            future: Future[Window] = Future()
            self._loading[key] = future
            # A daemon thread, so that an abandoned epoch does not delay the interpreter's exit.
            threading.Thread(target=self._run, args=(key, future), name="tokenshards-window", daemon=True).start()

    def load(self, shards: Sequence[int]) -> Window:
        """Return a window, after waiting for its prefetch.

        Raises CorruptObjectError naming shard and rows, MissingObjectError, TransientStorageError. A further call tries again.
        """
        self.prefetch(shards)
        future = self._loading.pop(tuple(shards), None)
        if future is None:
            raise ConfigError("this WindowStore is closed; open a new one")
        return future.result()

    def release(self, window: Window) -> None:
        """Remove the files of a window; its memory goes with the last reference to it."""
        if self._shared is not None:
            self._shared.evict(window.shards)
        self._copies.evict(self.dataset.shards[shard] for shard in window.shards)

    def close(self) -> None:
        """Stop prefetching; files stay for a later run."""
        self._closed.set()
        self._loading.clear()

    def _run(self, shards: tuple[int, ...], future: Future[Window]) -> None:
        try:
            future.set_result(self._decode(shards))
        except BaseException as error:
            future.set_exception(error)

    def _decode(self, shards: tuple[int, ...]) -> Window:
        spec, maps = self.dataset.spec, self._maps

        def write(sinks: Mapping[str, BinaryIO]) -> dict[str, tuple[np.dtype[Any], list[int]]]:
            return write_rows(self._until_closed(decode_shards(self._copies, shards, self._threads, maps)), spec, sinks, maps)

        arrays = None if self._shared is None else self._shared.load(shards, write)
        if arrays is None:
            memory = {name: io.BytesIO() for name in array_names(spec, maps)}
            arrays = {name: np.frombuffer(memory[name].getbuffer(), dtype).reshape(shape) for name, (dtype, shape) in write(memory).items()}
        places = np.array(shards, np.int64)
        return Window(shards, self._first_rows[places], self._counts[places], DecodedRows(spec, arrays))

    def _until_closed(self, groups: Iterator[Arrays]) -> Iterator[Arrays]:
        for arrays in groups:
            if self._closed.is_set():
                raise CancelledError
            yield arrays


def _require_budget(
    dataset: TokenDataset,
    largest: npt.NDArray[np.int64],
    cache_gb: float,
    window_shards: int,
    windows: int,
    maps: MaskFormat | None,
) -> None:
    """Raise ConfigError where the windows exceed the budget. `largest` holds the rows of shards in falling order."""
    needed = [decoded_bytes(dataset, int(rows), maps) for rows in np.cumsum(largest)]
    if not needed:
        return
    budget = cache_gb * GIGABYTE

    def of(shards: int) -> int:
        return needed[min(windows * shards, len(needed)) - 1]

    if of(window_shards) <= budget:
        return
    fitting = max((shards for shards in range(1, window_shards) if of(shards) <= budget), default=0)
    advice = f"use --set loader.window_shards={fitting}" if fitting else f"even windows of one shard need {of(1) / GIGABYTE:.3g} GB"
    raise ConfigError(
        f"cache_gb is {cache_gb:g}; {windows} windows of {window_shards} shards need {of(window_shards) / GIGABYTE:.3g} GB decoded. "
        f"Raise --cache-gb, or {advice}"
    )
