"""The shard table as a sequence of entries, and as bytes."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.pipeline.shards import shard_table
from tokenshards.pipeline.shards.commit import write_object
from tokenshards.pipeline.shards.shard_table import SHARD_TABLE_SCHEMA, ShardEntry, ShardTable, encode_shard_table, read_shard_table
from tokenshards.pipeline.storage.store import Store


def entries(count: int) -> list[ShardEntry]:
    good = ShardEntry(
        shard=0,
        path="shards/0",
        sha256="0" * 64,
        size=12,
        rows=4,
        quarantine_path=None,
        quarantine_sha256=None,
        quarantine_size=0,
        quarantined=0,
        inputs_seen=4,
        plan_id="e" * 64,
        commit_sha256="4" * 64,
    )
    lost = replace(good, path=None, sha256=None, size=0, rows=0, quarantine_path="quarantine/0", quarantine_sha256="5" * 64, quarantined=4)
    return [replace(lost if shard % 5 == 1 else good, shard=shard, commit_sha256=f"{shard:064x}") for shard in range(count)]


@pytest.fixture(params=[3, 1000])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_table, "CHUNK_ENTRIES", request.param)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_it_is_a_sequence_of_entries(count: int) -> None:
    wanted = entries(count)
    table = ShardTable(wanted)
    assert list(table) == wanted == [table[place] for place in range(count)] and len(table) == count
    assert table == wanted and table == ShardTable(iter(wanted)) and table == ShardTable(table)
    assert (table != wanted[:-1]) == (count > 0)
    for part in (slice(2, 9), slice(None, None, 3), slice(None, None, -1), slice(9, 2)):
        assert table[part] == wanted[part]
    if count:
        assert table[-1] == wanted[-1] and wanted[-1] in table
        assert table.column("shard").tolist() == list(range(count))
    with pytest.raises(IndexError):
        table[count]
    assert table[:2] + wanted[2:] == wanted


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("count", [0, 1, 20])
def test_its_bytes_are_those_of_one_plain_table(count: int) -> None:
    sink = pa.BufferOutputStream()
    plain = pa.Table.from_pylist([asdict(entry) for entry in entries(count)], schema=SHARD_TABLE_SCHEMA)
    plain = plain.drop_columns(["absent", "left_out"])  # a data set that needs nothing newer has the columns of format 1.0
    pq.write_table(plain, sink, compression="zstd")
    assert encode_shard_table(entries(count)) == bytes(sink.getvalue())
    assert encode_shard_table(ShardTable(entries(count))) == bytes(sink.getvalue())


def test_many_shards_make_several_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_table, "ROW_GROUP_SHARDS", 8)
    data = encode_shard_table(entries(20))
    assert pq.ParquetFile(pa.BufferReader(data)).num_row_groups == 3
    store = Store(str(tmp_path))
    reference = write_object(store, "tables", 0, data)
    assert read_shard_table(store, reference) == entries(20)


def test_damage_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"shard": [1]}), sink)
    for data, message in ((b"no table", "not a shard table"), (bytes(sink.getvalue()), "not a shard table")):
        with pytest.raises(CorruptObjectError, match=message):
            read_shard_table(store, write_object(store, "tables", 0, data))
    reference = write_object(store, "tables", 0, encode_shard_table(entries(2)))
    store.write(reference.path, b"other")
    with pytest.raises(CorruptObjectError, match="sha256"):
        read_shard_table(store, reference)
