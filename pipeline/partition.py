"""Cutting a listing of any length into shards in bounded memory: spool to disk in hash buckets, sort each, slice.

Loose files and table rows are ordered by a seeded hash of their sample id, so classes mix, the order of the listing does not matter,
and equal ids meet in one shard. Tars keep the order in which they are listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.canonical import keyed_hashes64
from pipeline.records import Label, PlanRow

__all__ = ["PLAN_SCHEMA", "RowSpool", "rows_to_table", "table_to_rows"]

PLAN_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("path", pa.binary()),  # bytes, because a file name need not be UTF-8; null, as mostly, where it is the sample id
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

_BUCKETS = 64
CHUNK_ROWS = 4096
"""Rows in memory as objects at any time; fewer make the spooled batches of a bucket too small to be fast."""


def rows_to_table(rows: list[PlanRow]) -> pa.Table:
    """Return plan rows as a table of PLAN_SCHEMA."""
    return pa.table(_columns(rows), schema=PLAN_SCHEMA)


def _columns(rows: list[PlanRow]) -> dict[str, Any]:
    return {
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


def table_to_rows(table: pa.Table, label_type: str | None) -> list[PlanRow]:
    """Return the plan rows of a table; labels become int where `label_type` is int64."""

    def label(text: str | None) -> Label:
        return int(text) if text is not None and label_type == "int64" else text

    return [
        PlanRow(
            **{
                **value,
                "path": value["sample_id"] if value["path"] is None else value["path"].decode("utf-8", "surrogateescape"),
                "label": label(value["label"]),
                "meta": json.loads(value["meta"]) if value["meta"] else {},
                "only": None if value["only"] is None else tuple(value["only"]),
                "skip": None if value["skip"] is None else tuple(value["skip"]),
            }
        )
        for value in table.to_pylist()
    ]


class RowSpool:
    """Plan rows on the local disk, ready to be cut into shards; memory is bounded by one bucket of the listing."""

    def __init__(self, folder: Path, *, order_seed: int, keep_order: bool) -> None:
        self._folder = folder
        self._key = f"order-{order_seed}"
        self._keep_order = keep_order
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        self._schema = PLAN_SCHEMA.append(pa.field("hash", pa.uint64(), nullable=False))
        self.rows = 0
        self.inputs = 0
        """Planned inputs, those in tars left out: their members are counted at commit."""
        self.tars = 0
        """Rows whose inputs nobody has counted."""

    def extend(self, rows: Iterable[PlanRow]) -> None:
        """Add rows; they go to the disk in chunks."""
        rows = iter(rows)
        while chunk := list(islice(rows, CHUNK_ROWS)):
            self.add(chunk)

    def add(self, chunk: list[PlanRow]) -> None:
        """Write a chunk of rows to the disk, each to the bucket of its hash."""
        self.rows += len(chunk)
        self.inputs += sum(row.inputs for row in chunk if row.inputs > 0)
        self.tars += sum(row.inputs < 0 for row in chunk)
        hashes = np.array(keyed_hashes64(self._key, [row.sample_id for row in chunk]), np.uint64)
        table = pa.table({**_columns(chunk), "hash": hashes}, schema=self._schema)
        buckets = np.zeros(len(chunk), np.int64) if self._keep_order else (hashes >> np.uint64(58)).astype(np.int64)
        order = np.argsort(buckets, kind="stable")
        cuts = np.searchsorted(buckets[order], np.arange(_BUCKETS + 1)).tolist()
        table = table.take(order)
        for bucket, (start, stop) in enumerate(pairwise(cuts)):
            if stop > start:
                self._writer(bucket).write_table(table.slice(start, stop - start))

    def shards(self, rows_per_shard: int, tars_per_shard: int = 1) -> Iterator[pa.Table]:
        """Yield the table of each shard in order; sizes differ by at most one slice, none is empty."""
        for writer in self._writers.values():
            writer.close()
        if self._keep_order:
            yield from self._in_order(tars_per_shard)
            return
        total = self.inputs + self.tars
        shards = max(1, -(-total // rows_per_shard))
        boundary = 1
        passed = 0  # inputs in shards already cut
        rest = self._schema.empty_table()
        for bucket in sorted(self._writers):
            table = pa.concat_tables([rest, self._sorted_bucket(bucket)])
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
        for bucket in self._writers:
            table = self._bucket(bucket)
            for start in range(0, table.num_rows, tars_per_shard):
                yield table.slice(start, tars_per_shard).drop_columns("hash")

    def _writer(self, bucket: int) -> pa.RecordBatchStreamWriter:
        if bucket not in self._writers:
            self._writers[bucket] = pa.ipc.new_stream(str(self._folder / f"bucket-{bucket:03d}.arrow"), self._schema)
        return self._writers[bucket]

    def _bucket(self, bucket: int) -> pa.Table:
        with pa.ipc.open_stream(str(self._folder / f"bucket-{bucket:03d}.arrow")) as stream:
            return stream.read_all()

    def _sorted_bucket(self, bucket: int) -> pa.Table:
        return self._bucket(bucket).sort_by([("hash", "ascending"), ("sample_id", "ascending"), ("path", "ascending")])


def _past_equal_ids(sample_ids: pa.ChunkedArray, stop: int) -> int:
    while stop < len(sample_ids) and sample_ids[stop].as_py() == sample_ids[stop - 1].as_py():
        stop += 1
    return stop
