"""Single rows of a dataset in any order: decoded row groups stay in memory, the ones used last, up to a number of bytes."""

from __future__ import annotations

import bisect
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate

from tokenshards.pipeline.shards.manifest import ShardEntry
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.rows import ShardData

__all__ = ["RowGroups"]

CACHED_BYTES = 256_000_000
OPEN_SHARDS = 16


class RowGroups:
    """The row groups of some shards by the rows that they hold; safe for threads, and in a process that was forked."""

    def __init__(self, shards: Sequence[ShardEntry], open_shard: Callable[[ShardEntry], ShardReader]) -> None:
        self._shards, self._open_shard = shards, open_shard
        self._ends = list(accumulate(entry.rows for entry in shards))
        self._group_ends: dict[int, list[int]] = {}
        self._start_anew()

    def find(self, row: int) -> tuple[ShardData, int]:
        """Return the row group that holds a row of the dataset, and the row's place in it."""
        if os.getpid() != self._process:  # a forked process must not share locks and open files with its parent
            self._start_anew()
        shard = bisect.bisect_right(self._ends, row)
        at = row - (self._ends[shard - 1] if shard else 0)
        with self._lock:
            ends = self._group_ends.get(shard) or self._ends_of(shard)
            group = bisect.bisect_right(ends, at)
            return self._group(shard, group), at - (ends[group - 1] if group else 0)

    def _start_anew(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], ShardData] = OrderedDict()
        self._bytes = 0

    def _ends_of(self, shard: int) -> list[int]:
        reader = self._reader(shard)
        self._group_ends[shard] = list(accumulate(reader.row_group_rows(group) for group in range(reader.num_row_groups)))
        return self._group_ends[shard]

    def _reader(self, shard: int) -> ShardReader:
        reader = self._readers.pop(shard, None) or self._open_shard(self._shards[shard])
        self._readers[shard] = reader
        if len(self._readers) > OPEN_SHARDS:
            self._readers.popitem(last=False)
        return reader

    def _group(self, shard: int, group: int) -> ShardData:
        data = self._groups.pop((shard, group), None)
        if data is None:
            data = self._reader(shard).read_row_group(group)
            self._bytes += _bytes_of(data)
        self._groups[shard, group] = data
        while self._bytes > CACHED_BYTES and len(self._groups) > 1:
            self._bytes -= _bytes_of(self._groups.popitem(last=False)[1])
        return data


def _bytes_of(data: ShardData) -> int:
    return int(data.tokens.ids_BLQ.nbytes + data.table.nbytes)
