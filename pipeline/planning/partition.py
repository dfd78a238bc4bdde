"""Cut a listing of any length into shards in bounded memory: spool rows to disk in hash buckets, sort each bucket, slice.

Loose files and table rows are sorted by a seeded hash of their sample id. So classes mix, the order of the listing does not matter, and
equal ids fall into one shard. Tars keep the order of the listing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from tokenshards.pipeline.canonical import keyed_hashes64
from tokenshards.pipeline.records import Label, PlanRow

__all__ = ["PLAN_SCHEMA", "RowSpool", "table_to_rows"]

PLAN_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("path", pa.binary()),  # bytes, because a file name need not be UTF-8; null if it equals the sample id
        pa.field("size", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("inputs", pa.int64(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("meta", pa.string()),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row_start", pa.int64(), nullable=False),
        pa.field("row_stop", pa.int64(), nullable=False),
        pa.field("only", pa.list_(pa.string())),
        pa.field("skip", pa.list_(pa.string())),
    ]
)

MASK_COLUMNS = (pa.field("mask_path", pa.binary()), pa.field("mask_size", pa.int64()), pa.field("mask_version", pa.string()))
"""Further columns of plans whose masks are files of their own; null for an input without such a mask."""

_BUCKET_BITS = 6
_MORE_BITS = 7
_PIECE_ROWS = 1 << 14
"""Most rows to sort at once; a larger bucket is first spread over up to 2**_MORE_BITS files."""
CHUNK_ROWS = 1 << 13
"""Rows written to disk together; with fewer rows the batches per bucket are too small to be fast."""
_SPREAD_ROWS = 1 << 14
"""Rows written together when a bucket is spread; more than CHUNK_ROWS, because there are twice as many files."""
GROUP_ROWS = 256
"""Most rows that exist as Python objects at the same time; more would slow down the garbage collector."""


def _columns(rows: list[PlanRow], mask_files: bool) -> dict[str, Any]:
    masks = {
        "mask_path": [None if row.mask_path is None else row.mask_path.encode("utf-8", "surrogateescape") for row in rows],
        "mask_size": [None if row.mask_path is None else row.mask_size for row in rows],
        "mask_version": [None if row.mask_path is None else row.mask_version for row in rows],
    }
    return {
        **(masks if mask_files else {}),
        "kind": [row.kind for row in rows],
        "sample_id": [row.sample_id for row in rows],
        "path": [None if row.path == row.sample_id else row.path.encode("utf-8", "surrogateescape") for row in rows],
        "size": [row.size for row in rows],
        "version": [row.version for row in rows],
        "inputs": [row.inputs for row in rows],
        "label": [None if row.label is None else str(row.label) for row in rows],
        "meta": [json.dumps(row.meta, sort_keys=True, ensure_ascii=False) if row.meta else None for row in rows],
        "row_group": [row.row_group for row in rows],
        "row_start": [row.row_start for row in rows],
        "row_stop": [row.row_stop for row in rows],
        "only": [row.only for row in rows],
        "skip": [row.skip for row in rows],
    }


def table_to_rows(table: pa.Table, label_type: str | None, meta_types: Mapping[str, str] = MappingProxyType({})) -> list[PlanRow]:
    """Return the plan rows of a table; labels become int if `label_type` is int64, and meta values get the type of their column.

    Before the listing met a value of another type, it wrote those of a column that is text now as numbers.
    """
    texts = [name for name, kind in meta_types.items() if kind == "string"]

    def meta(text: str | None) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(text) if text else {}
        for name in texts:
            value = values.get(name)
            if value is not None and not isinstance(value, str):
                values[name] = json.dumps(value)
        return values

    def label(text: str | None) -> Label:
        return int(text) if text is not None and label_type == "int64" else text

    known = {*PLAN_SCHEMA.names, *(field.name for field in MASK_COLUMNS)}
    table = table.select([name for name in table.column_names if name in known])  # a newer minor version may have more columns
    return [
        PlanRow(
            **{
                **value,
                "path": value["sample_id"] if value["path"] is None else value["path"].decode("utf-8", "surrogateescape"),
                **_mask(value),
                "label": label(value["label"]),
                "meta": meta(value["meta"]),
                "only": None if value["only"] is None else tuple(value["only"]),
                "skip": None if value["skip"] is None else tuple(value["skip"]),
            }
        )
        for value in table.to_pylist()
    ]


def _mask(value: dict[str, Any]) -> dict[str, Any]:
    path = value.get("mask_path")
    if path is None:
        return {"mask_path": None, "mask_size": -1, "mask_version": ""}
    return {"mask_path": path.decode("utf-8", "surrogateescape")}


class RowSpool:
    """Plan rows on local disk, to be cut into shards. For any listing, memory is bounded by one chunk, one piece and one shard."""

    def __init__(self, folder: Path, *, order_seed: int, keep_order: bool, mask_files: bool = False) -> None:
        self._mask_files = mask_files
        self.schema = pa.schema([*PLAN_SCHEMA, *(MASK_COLUMNS if mask_files else ())])
        """Schema of the plan's parts."""
        self._key = f"order-{order_seed}"
        self._keep_order = keep_order
        self._pending: dict[str, list[Any]] = _columns([], mask_files)
        self._buckets = _Buckets(folder, "bucket", shift=64 - _BUCKET_BITS, bits=0 if keep_order else _BUCKET_BITS)
        self._schema = self.schema.append(pa.field("hash", pa.uint64(), nullable=False))
        self.rows = 0
        self.inputs = 0
        """Planned inputs without those in tars, whose members are counted at commit."""
        self.tars = 0
        """Number of rows whose inputs are not counted yet."""

    def extend(self, rows: Iterable[PlanRow]) -> None:
        """Add any number of rows."""
        rows = iter(rows)
        while group := list(islice(rows, GROUP_ROWS)):
            self.add(group)

    def add(self, rows: list[PlanRow]) -> None:
        """Add a few rows; full chunks go to disk."""
        self.rows += len(rows)
        self.inputs += sum(row.inputs for row in rows if row.inputs > 0)
        self.tars += sum(row.inputs < 0 for row in rows)
        for name, values in _columns(rows, self._mask_files).items():
            self._pending[name] += values
        if len(self._pending["kind"]) >= CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        hashes = np.array(keyed_hashes64(self._key, self._pending["sample_id"]), np.uint64)
        table = pa.table({**self._pending, "hash": hashes}, schema=self._schema)
        self._pending = _columns([], self._mask_files)
        self._buckets.add(table)

    def shards(self, rows_per_shard: int, tars_per_shard: int = 1) -> Iterator[pa.Table]:
        """Yield the table of each shard in order. This works only once: reading deletes the spooled files.

        Shard sizes differ by at most one slice, and no shard is empty.
        """
        self._flush()
        if self._keep_order:
            yield from self._in_order(tars_per_shard)
            return
        total = self.inputs + self.tars
        shards = max(1, -(-total // rows_per_shard))
        boundary = 1
        passed = 0  # inputs in the shards already yielded
        rest = self._schema.empty_table()
        for piece in self._buckets.sorted_pieces():
            table = pa.concat_tables([rest, piece])
            ends = passed + np.cumsum(np.maximum(table["inputs"].to_numpy(), 1))
            start = 0
            while start < len(ends) and ends[-1] >= (target := boundary * total // shards):
                stop = int(np.searchsorted(ends, target, "left")) + 1
                stop = _past_equal_ids(table["sample_id"], stop)
                boundary += 1
                if stop > start:
                    yield table.slice(start, stop - start).drop_columns("hash")
                    passed = int(ends[stop - 1])
                    start = stop
            rest = table.slice(start)
        if rest.num_rows:
            yield rest.drop_columns("hash")

    def _in_order(self, tars_per_shard: int) -> Iterator[pa.Table]:
        rest = self._schema.empty_table()
        for chunk in self._buckets.chunks():
            table = pa.concat_tables([rest, chunk])
            whole = table.num_rows - table.num_rows % tars_per_shard
            for start in range(0, whole, tars_per_shard):
                yield table.slice(start, tars_per_shard).drop_columns("hash")
            rest = table.slice(whole)
        if rest.num_rows:
            yield rest.drop_columns("hash")


class _Buckets:
    """Files of rows: `bits` bits of a row's hash, from bit `shift` up, choose its file. A file too large to sort is spread again."""

    def __init__(self, folder: Path, name: str, *, shift: int, bits: int) -> None:
        self._folder, self._name = folder, name
        self._shift, self._bits = shift, bits
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        self._rows: Counter[int] = Counter()

    def add(self, table: pa.Table) -> None:
        """Append rows to the files; each file keeps their order."""
        if not self._bits:
            self._append(0, table)
            return
        mask = (1 << self._bits) - 1
        buckets = (table["hash"].to_numpy() >> np.uint64(self._shift)).astype(np.int64) & mask
        order = np.argsort(buckets, kind="stable")
        cuts = np.searchsorted(buckets[order], np.arange(mask + 2)).tolist()
        table = table.take(order)
        for bucket, (start, stop) in enumerate(pairwise(cuts)):
            if stop > start:
                self._append(bucket, table.slice(start, stop - start))

    def _append(self, bucket: int, table: pa.Table) -> None:
        if bucket not in self._writers:
            self._writers[bucket] = pa.ipc.new_stream(str(self._file(bucket)), table.schema)
        self._writers[bucket].write_table(table)
        self._rows[bucket] += table.num_rows

    def sorted_pieces(self) -> Iterator[pa.Table]:
        """Yield all rows in order of (hash, sample id, path), in tables of bounded size; rows of equal hash are in one table."""
        self._close()
        for bucket in sorted(self._rows):
            rows = self._rows[bucket]
            bits = min(_MORE_BITS, self._shift, (rows // _PIECE_ROWS).bit_length())
            if bits:
                inner = _Buckets(self._folder, f"{self._name}-{bucket:02d}", shift=self._shift - bits, bits=bits)
                for chunk in self._read(bucket, _SPREAD_ROWS):
                    inner.add(chunk)
                    del chunk
                yield from inner.sorted_pieces()
            else:
                yield self._sorted(bucket)

    def _sorted(self, bucket: int) -> pa.Table:
        table = pa.concat_tables(self._read(bucket, CHUNK_ROWS))
        return table.sort_by([("hash", "ascending"), ("sample_id", "ascending"), ("path", "ascending")])

    def chunks(self) -> Iterator[pa.Table]:
        """Yield all rows, file by file, in the order they were added."""
        self._close()
        for bucket in sorted(self._rows):
            yield from self._read(bucket, CHUNK_ROWS)

    def _read(self, bucket: int, chunk_rows: int) -> Iterator[pa.Table]:
        # Opening by path would mmap the whole file and inflate RSS.
        with pa.OSFile(str(self._file(bucket))) as file, pa.ipc.open_stream(file) as stream:
            batches: list[pa.RecordBatch] = []
            rows = 0
            for batch in stream:
                batches.append(batch)
                rows += batch.num_rows
                if rows >= chunk_rows:
                    yield pa.Table.from_batches(batches)
                    batches, rows = [], 0
            if batches:
                yield pa.Table.from_batches(batches)
        self._file(bucket).unlink()

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _file(self, bucket: int) -> Path:
        return self._folder / f"{self._name}-{bucket:02d}.arrow"


def _past_equal_ids(sample_ids: pa.ChunkedArray, stop: int) -> int:
    while stop < len(sample_ids) and sample_ids[stop].as_py() == sample_ids[stop - 1].as_py():
        stop += 1
    return stop
