"""Tables of columns: Parquet, and Arrow files (`.arrow`, `.feather`) as pyarrow, pandas and `datasets` write them."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from tokenshards.pipeline.errors import SourceError
from tokenshards.pipeline.sources.tables.files import open_parquet
from tokenshards.pipeline.storage.object_file import RangeReader
from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = ["BINARY_TABLES", "ColumnTable", "class_names", "is_binary", "open_binary"]

BINARY_TABLES = (".parquet", ".arrow", ".feather")
_ARROW_FILE = b"ARROW1"


class ColumnTable:
    """One open table of columns: its rows lie in groups, and any column of any group can be read alone."""

    schema: pa.Schema
    group_rows: list[int]

    def batches(self, names: Sequence[str], groups: Sequence[int], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the columns of some groups in batches of at most `rows` rows. A name such as `image.bytes` is a field of a struct."""
        raise NotImplementedError

    def all_batches(self, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of the whole table."""
        return self.batches(names, range(len(self.group_rows)), rows)

    def rows_between(self, names: Sequence[str], start: int, stop: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the columns of the rows `start` to `stop`, counted from the first row of the table."""
        # By row number, not by the planned group: before a retry the table may have been rewritten with other groups.
        stops = list(accumulate(self.group_rows))
        groups = range(bisect_right(stops, start), min(bisect_left(stops, stop) + 1, len(stops)))
        if not groups:
            return
        position = stops[groups[0]] - self.group_rows[groups[0]]
        for batch in self.batches(names, groups, rows):
            skipped = max(0, start - position)
            wanted = min(batch.num_rows, stop - position)
            position += batch.num_rows
            if skipped < wanted:
                yield batch.slice(skipped, wanted - skipped)
            if position >= stop:
                return


class _Parquet(ColumnTable):
    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self.file = open_parquet(store, info.path, info.size)
        self.schema = self.file.schema_arrow
        metadata = self.file.metadata
        self.group_rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def batches(self, names: Sequence[str], groups: Sequence[int], rows: int) -> Iterator[pa.RecordBatch]:
        if groups:
            # Handing a single column from thread to thread costs more than it gains.
            yield from self.file.iter_batches(rows, row_groups=list(groups), columns=list(names), use_threads=len(names) > 1)


class _Arrow(ColumnTable):
    """An Arrow file, or a stream of Arrow, which has no index: it is read through a memory map, where to skip a batch costs nothing."""

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._is_file = store.read(info.path, 0, min(info.size, len(_ARROW_FILE))) == _ARROW_FILE
        if not store.is_local and not self._is_file:
            raise SourceError(
                f"{store.place(info.path)} is a stream of Arrow without an index, which a store cannot read in parts; copy it to a disk, "
                "or write it as Parquet"
            )
        self._place, self._info, self._store = store.place(info.path), info, store
        with self._open(None) as reader:
            self.schema = reader.schema
        self.group_rows = [batch.num_rows for batch in self._read(None, [])]

    def _open(self, fields: list[int] | None) -> Any:
        store, info = self._store, self._info
        source: Any = pa.memory_map(store.join(info.path)) if store.is_local else RangeReader(store, info.path, info.size)
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        return pa.ipc.open_file(source, options=options) if self._is_file else pa.ipc.open_stream(source, options=options)

    def _read(self, groups: Sequence[int] | None, fields: list[int]) -> Iterator[pa.RecordBatch]:
        """Yield fields of some groups, or of all; without a field, the one that is likely the smallest."""
        with self._open(fields or [self._smallest()]) as reader:
            if self._is_file:
                yield from (reader.get_batch(group) for group in (range(reader.num_record_batches) if groups is None else groups))
            else:
                yield from (batch for number, batch in enumerate(reader) if groups is None or number in groups)

    def _smallest(self) -> int:
        types = self.schema.types
        return next((place for place, kind in enumerate(types) if pa.types.is_primitive(kind)), 0)

    def batches(self, names: Sequence[str], groups: Sequence[int], rows: int) -> Iterator[pa.RecordBatch]:
        columns = list(dict.fromkeys(name if name in self.schema.names else name.rpartition(".")[0] for name in names))
        fields = [self.schema.get_field_index(name) for name in columns]
        for batch in self._read(groups, fields):
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


def is_binary(path: str) -> bool:
    """Return whether the name is that of a table of columns."""
    return path.lower().endswith(BINARY_TABLES)


def open_binary(store: Store, info: ObjectInfo) -> ColumnTable:
    """Return a table of columns, without reading its rows."""
    return _Parquet(store, info) if info.path.lower().endswith(".parquet") else _Arrow(store, info)


def class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Return the names of the classes of a ClassLabel column, in their order, as `datasets` writes them beside the schema; () if none."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        return ()
    return tuple(names)
