"""Shards become arrays: threads decode row groups.

Shapes: N rows, Q ids per site, L sites, D dimensions of a ragged layout's shape, H x W pixels of a label map.

A label map is the mask of an image: the class of each pixel. Maps are decoded only for those who ask for them, by giving their format.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

import numpy as np

from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.pipeline.shards.masks import MASK, MaskFormat, masks_of
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.stem_adaptors.data.cache import ShardCopies
from tokenshards.stem_adaptors.data.decoded_rows import Arrays

__all__ = ["decode_shards", "decoding_threads"]

T = TypeVar("T")


def decoding_threads() -> int:
    """Return how many threads decode: the cores of this process, at most 16."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def decode_shards(copies: ShardCopies, shards: Sequence[int], threads: int, maps: MaskFormat | None = None) -> Iterator[Arrays]:
    """Yield the arrays of every row group of the shards at these places of `dataset.shards`, in order; `threads` groups decode at once.

    Keys: `ids` [n, Q, L] or flat, `labels` [n], and for ragged layouts `sizes` [n], the ids of each row, and `shapes` [n, D]; `maps`
    [n, H, W] where their format is given. At most 3 `threads` row groups and 4 encoded shards are in memory. Raises CorruptObjectError
    naming shard and rows.
    """
    starts = np.cumsum([0, *(entry.rows for entry in copies.dataset.shards)])
    # Two pools, so that a slow download does not delay row groups that are ready to decode.
    opening, decoding = ThreadPoolExecutor(4, "tokenshards-open"), ThreadPoolExecutor(threads, "tokenshards-decode")
    try:
        opened = _in_order(opening, (partial(_OpenShard, copies, shard, int(starts[shard]), maps) for shard in shards), 3)
        groups = (partial(shard.decode, group) for shard in opened for group in range(shard.groups))
        yield from _in_order(decoding, groups, 2 * threads)
    finally:
        for pool in (opening, decoding):
            pool.shutdown(wait=False, cancel_futures=True)


class _OpenShard:
    """One shard whose row groups several threads decode, each with a reader of its own."""

    def __init__(self, copies: ShardCopies, shard: int, first_row: int, maps: MaskFormat | None) -> None:
        self._dataset, self._first_row, self._maps = copies.dataset, first_row, maps
        self._entry = entry = copies.dataset.shards[shard]
        with _naming_rows(first_row, entry.rows):
            self._open = copies.open(entry)
            reader = self._open()
            counts = [reader.row_group_rows(group) for group in range(reader.num_row_groups)]
            if sum(counts) != entry.rows:
                raise CorruptObjectError(str(entry.path), f"its row groups hold {sum(counts)} rows; the manifest says {entry.rows}")
            # At once, because a column of a few bytes a row costs a fifth as much by the shard as by the row group.
            self._labels_N = self._dataset._class_indices(reader.read_columns(("label",)).column("label"))
        self.groups = len(counts)
        self._ends = np.cumsum(counts)
        self._idle: SimpleQueue[ShardReader] = SimpleQueue()
        self._idle.put(reader)

    def decode(self, group: int) -> Arrays:
        """Return the arrays of one row group."""
        try:
            reader = self._idle.get_nowait()
        except Empty:
            reader = self._open()
        rows = reader.row_group_rows(group)
        end = int(self._ends[group])
        with _naming_rows(self._first_row + end - rows, rows):
            data = reader.read_row_group(group, () if self._maps is None else (MASK,))
            tokens, extra = data.tokens, {} if self._maps is None else {"maps": masks_of(data.table.column(MASK), self._maps)}
        self._idle.put(reader)
        labels_N = self._labels_N[end - rows : end]
        ids_NQL = tokens.ids_BLQ.transpose(0, 2, 1)
        if not reader.spec.layout.variable:
            return {"ids": ids_NQL, "labels": labels_N, **extra}
        shapes_ND = tokens.shapes_BD
        lengths_N = tokens.lengths_B if shapes_ND is None else shapes_ND.prod(axis=1)
        used_NQL = np.broadcast_to((np.arange(ids_NQL.shape[2]) < np.asarray(lengths_N)[:, None])[:, None], ids_NQL.shape)
        arrays = {"ids": ids_NQL[used_NQL], "labels": labels_N, "sizes": np.asarray(lengths_N, np.int64) * ids_NQL.shape[1], **extra}
        return arrays if shapes_ND is None else {**arrays, "shapes": shapes_ND}


def _in_order(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """Run tasks in the pool and yield their results in order. `ahead` tasks are submitted beyond the one that is awaited."""
    pending: deque[Future[T]] = deque()
    for task in tasks:
        pending.append(pool.submit(task))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextmanager
def _naming_rows(first_row: int, rows: int) -> Iterator[None]:
    try:
        yield
    except CorruptObjectError as error:
        where = f"dataset rows {first_row} to {first_row + rows - 1} are in it"
        raise CorruptObjectError(error.object_path, f"{error.detail}; {where}") from None
