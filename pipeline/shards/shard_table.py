"""The shard table of a manifest: one row per shard, as Arrow columns. A million Python objects would fill most of a driver's memory."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.pipeline.shards.commit import ObjectRef
from tokenshards.pipeline.storage.store import Store

__all__ = ["ShardEntry", "ShardTable", "encode_shard_table", "read_shard_table"]

SHARD_TABLE_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("quarantine_path", pa.string()),
        pa.field("quarantine_sha256", pa.string()),
        pa.field("quarantine_size", pa.int64(), nullable=False),
        pa.field("quarantined", pa.int64(), nullable=False),
        pa.field("inputs_seen", pa.int64(), nullable=False),
        pa.field("plan_id", pa.string(), nullable=False),
        pa.field("commit_sha256", pa.string(), nullable=False),
        pa.field("absent", pa.int64(), nullable=False),
        pa.field("left_out", pa.int64(), nullable=False),
    ]
)
_COLUMNS_OF_1_1 = ("absent", "left_out")
"""Columns that exist only in files of data sets that need them; in memory they always exist."""

ROW_GROUP_SHARDS = 1 << 14
"""Shards encoded at once; encoding needs three times the memory of these rows."""
CHUNK_ENTRIES = 1024
"""Entries that exist as Python objects at the same time while a table is built or iterated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One row of the shard table; `path` is None if every input of the shard failed."""

    shard: int
    path: str | None
    sha256: str | None
    size: int
    rows: int
    quarantine_path: str | None
    quarantine_sha256: str | None
    quarantine_size: int
    quarantined: int
    inputs_seen: int
    plan_id: str
    commit_sha256: str
    absent: int = 0
    left_out: int = 0

    @property
    def data(self) -> ObjectRef | None:
        """The shard's file, None if every input failed."""
        return None if self.path is None else ObjectRef(path=self.path, sha256=str(self.sha256), size=self.size)

    @property
    def quarantine(self) -> ObjectRef | None:
        """The shard's quarantine file, None if no input failed."""
        path = self.quarantine_path
        return None if path is None else ObjectRef(path=path, sha256=str(self.quarantine_sha256), size=self.quarantine_size)


class ShardTable(Sequence[ShardEntry]):
    """A sequence of entries that takes about 330 bytes each; an entry object is made on access."""

    __slots__ = ("_table",)

    def __init__(self, entries: Iterable[ShardEntry] = ()) -> None:
        if isinstance(entries, ShardTable):
            self._table: pa.Table = entries._table
            return
        entries = iter(entries)
        chunks = []
        while chunk := list(islice(entries, CHUNK_ENTRIES)):
            columns = {name: [getattr(entry, name) for entry in chunk] for name in SHARD_TABLE_SCHEMA.names}
            chunks.append(pa.table(columns, schema=SHARD_TABLE_SCHEMA))
        self._table = pa.concat_tables(chunks) if chunks else SHARD_TABLE_SCHEMA.empty_table()

    @classmethod
    def from_arrow(cls, table: pa.Table) -> ShardTable:
        """Return the entries of an Arrow table of SHARD_TABLE_SCHEMA."""
        entries = cls()
        entries._table = table
        return entries

    def __add__(self, other: Iterable[ShardEntry]) -> ShardTable:
        """Return the entries of both tables without a copy."""
        return ShardTable.from_arrow(pa.concat_tables([self._table, ShardTable(other)._table]))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, index: slice) -> ShardTable: ...
    def __getitem__(self, index: int | slice) -> ShardEntry | ShardTable:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return ShardTable.from_arrow(self._table.slice(start, max(0, stop - start)))
            return ShardTable.from_arrow(self._table.take(pa.array(range(start, stop, step), pa.int64())))
        place = range(len(self))[index]
        return ShardEntry(**self._table.slice(place, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[ShardEntry]:
        for batch in self._table.to_batches(max_chunksize=CHUNK_ENTRIES):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield ShardEntry(**dict(zip(SHARD_TABLE_SCHEMA.names, values, strict=True)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ShardTable):
            return bool(self._table.equals(other._table))
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ShardTable({len(self)} shards)"

    def column(self, name: str) -> Any:
        """Return one field of all entries as a NumPy array."""
        return self._table[name].to_numpy()

    def to_parquet(self) -> bytes:
        """Return the table as Parquet bytes; equal entries give equal bytes, however the table was built."""
        sink = io.BytesIO()
        table = self._table if any(self.column(name).any() for name in _COLUMNS_OF_1_1) else self._table.drop_columns(_COLUMNS_OF_1_1)
        with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
            for start in range(0, max(1, len(self)), ROW_GROUP_SHARDS):
                writer.write_table(table.slice(start, ROW_GROUP_SHARDS).combine_chunks(), ROW_GROUP_SHARDS)
                pa.default_memory_pool().release_unused()  # otherwise the pool keeps several times the memory in use
        return sink.getvalue()


def encode_shard_table(entries: Iterable[ShardEntry]) -> bytes:
    """Return the shard table as Parquet bytes."""
    return ShardTable(entries).to_parquet()


def read_shard_table(store: Store, reference: ObjectRef) -> ShardTable:
    """Read the shard table and check it against its checksum; raises CorruptObjectError."""
    data = store.read(reference.path)
    if sha256_hex(data) != reference.sha256:
        raise CorruptObjectError(reference.path, f"sha256 is {sha256_hex(data)[:12]}…; the manifest names {reference.sha256[:12]}…")
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        groups = [SHARD_TABLE_SCHEMA.empty_table()]
        for group in range(file.num_row_groups):
            # Arrow's reader threads can abort the interpreter at exit (apache/arrow issue 34314); small tables do not need them.
            table = file.read_row_group(group, columns=SHARD_TABLE_SCHEMA.names, use_threads=False)
            for name in _COLUMNS_OF_1_1:
                if name not in table.column_names:
                    table = table.append_column(name, pa.array(np.zeros(len(table), np.int64)))
            groups.append(table.select(SHARD_TABLE_SCHEMA.names).cast(SHARD_TABLE_SCHEMA))
            pa.default_memory_pool().release_unused()
        return ShardTable.from_arrow(pa.concat_tables(groups))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise CorruptObjectError(reference.path, f"not a shard table ({error})") from None
