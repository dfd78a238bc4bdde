"""Cutting listings into shards: every row once, even sizes, equal ids together, whatever the order of the listing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.pipeline.planning import partition
from tokenshards.pipeline.planning.partition import RowSpool, table_to_rows
from tokenshards.pipeline.records import PlanRow


def row(sample_id: str, inputs: int = 1, **changes: object) -> PlanRow:
    kind = "file" if inputs == 1 else "rows" if inputs > 1 else "tar"
    return PlanRow(**{"kind": kind, "sample_id": sample_id, "path": sample_id, "size": 9, "version": "v", "inputs": inputs, **changes})  # type: ignore[arg-type]


def cut(rows: list[PlanRow], rows_per_shard: int, *, seed: int = 0, keep_order: bool = False, tars: int = 1) -> list[list[PlanRow]]:
    with TemporaryDirectory() as folder:
        spool = RowSpool(Path(folder), order_seed=seed, keep_order=keep_order)
        spool.extend(rows)
        return [table_to_rows(table, "string") for table in spool.shards(rows_per_shard, tars)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), max_size=120),
    st.integers(1, 40),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_files_are_cut_evenly_and_in_no_listing_order(names: list[str], per_shard: int, seed: int, random: object) -> None:
    rows = [row(name) for name in names]
    shards = cut(rows, per_shard, seed=seed)
    assert Counter(entry.sample_id for shard in shards for entry in shard) == Counter(names)
    assert all(shards)
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert [[entry.sample_id for entry in shard] for shard in cut(shuffled, per_shard, seed=seed)] == [
        [entry.sample_id for entry in shard] for shard in shards
    ]
    where: dict[str, set[int]] = {}
    for number, shard in enumerate(shards):
        for entry in shard:
            where.setdefault(entry.sample_id, set()).add(number)
    assert all(len(numbers) == 1 for numbers in where.values()), "equal ids meet in one shard"
    if len(set(names)) == len(names) and names:
        count = -(-len(names) // per_shard)
        assert sorted({len(shard) for shard in shards}) in ([len(names) // count], [len(names) // count, len(names) // count + 1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 50), min_size=1, max_size=40), st.integers(1, 120))
def test_slices_stay_whole(sizes: list[int], per_shard: int) -> None:
    rows = [row(f"t#{index}", size) for index, size in enumerate(sizes)]
    shards = cut(rows, per_shard)
    assert sorted(entry.sample_id for shard in shards for entry in shard) == sorted(entry.sample_id for entry in rows)
    limit = -(-sum(sizes) // -(-sum(sizes) // per_shard))
    assert all(sum(entry.inputs for entry in shard) <= limit + max(sizes) for shard in shards)


def test_tars_keep_their_order() -> None:
    rows = [row(f"{number:03d}.tar", -1) for number in (3, 1, 2, 0, 4)]
    assert [[entry.sample_id for entry in shard] for shard in cut(rows, 10, keep_order=True, tars=2)] == [
        ["003.tar", "001.tar"],
        ["002.tar", "000.tar"],
        ["004.tar"],
    ]


def test_the_seed_mixes_the_classes() -> None:
    rows = [row(f"class_{index // 500}/{index}") for index in range(1000)]
    first, second = cut(rows, 500), cut(rows, 500, seed=1)
    for shards in (first, second):
        share = sum(entry.sample_id.startswith("class_0") for entry in shards[0]) / 500
        assert 0.4 < share < 0.6
    assert first[0][0] != second[0][0]


def test_spooling_in_several_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(f"{index}") for index in range(300)]
    whole = cut(rows, 70)
    monkeypatch.setattr(partition, "CHUNK_ROWS", 32)
    assert cut(rows, 70) == whole


@pytest.mark.parametrize("piece_rows", [1, 7, 64])
def test_sorting_in_small_pieces_changes_nothing(piece_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(f"{index % 130}", label=str(index)) for index in range(300)]  # every id occurs twice or three times
    whole = cut(rows, 70)
    for name, value in (("_PIECE_ROWS", piece_rows), ("CHUNK_ROWS", 64), ("_BUCKET_BITS", 2), ("_MORE_BITS", 3)):
        monkeypatch.setattr(partition, name, value)
    assert cut(rows, 70) == whole


def test_more_rows_of_one_id_than_are_sorted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "_PIECE_ROWS", 8)
    rows = [row("same", label=str(index)) for index in range(100)] + [row(f"{index}") for index in range(50)]
    shards = cut(rows, 10)
    assert sum(len(shard) for shard in shards) == 150
    assert sum(any(entry.sample_id == "same" for entry in shard) for shard in shards) == 1


def test_tars_of_several_chunks_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "CHUNK_ROWS", 8)
    rows = [row(f"{number}.tar", -1) for number in range(500)]
    shards = cut(rows, 10, keep_order=True, tars=3)
    assert [entry for shard in shards for entry in shard] == rows
    assert {len(shard) for shard in shards[:-1]} == {3} and len(shards[-1]) == 2


def test_the_spool_is_deleted_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "_PIECE_ROWS", 64)
    spool = RowSpool(tmp_path, order_seed=0, keep_order=False)
    rows = partition.CHUNK_ROWS + 100
    spool.extend(row(f"{index}") for index in range(rows))
    assert list(tmp_path.iterdir())
    assert sum(table.num_rows for table in spool.shards(100)) == rows
    assert not list(tmp_path.iterdir())


def test_every_field_survives() -> None:
    odd = row(
        "ä\n'\"",
        label=7,
        meta={"caption": "ö", "n": 3},
        path="bad\udcff/name.jpg",
        row_group=2,
        row_start=5,
        row_stop=9,
        only=("a",),
        skip=(),
    )
    with TemporaryDirectory() as folder:
        spool = RowSpool(Path(folder), order_seed=0, keep_order=True)
        spool.extend([odd, row("x", label="8")])
        (table,) = spool.shards(9, 2)
    first, second = table_to_rows(table, "int64")
    assert first == odd and second.label == 8
    newer = table.append_column("of_a_newer_version", pa.array([1, 2]))
    assert [entry.label for entry in table_to_rows(newer, "string")] == ["7", "8"]
