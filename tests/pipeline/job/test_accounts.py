"""Inputs that are absent and files that are left out, from a source to the commit: each is counted once and takes what the plan says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import write_images
from tests.pipeline.planned import planned_job
from tokenshards.pipeline.errors import BadInput, Reason
from tokenshards.pipeline.job import inputs
from tokenshards.pipeline.job.batches import DecodedBatch
from tokenshards.pipeline.job.context import open_context
from tokenshards.pipeline.job.inputs import read_inputs
from tokenshards.pipeline.job.job_spec import ShardSummary
from tokenshards.pipeline.job.originals import read_originals
from tokenshards.pipeline.job.shard_job import JobContext, ShardProgress, list_sample_ids, probe_shard, tokenize_shard
from tokenshards.pipeline.planning.plan import read_shard_rows
from tokenshards.pipeline.records import AbsentRecord, FailedRecord, ImageRecord, LeftOutRecord, PlanRow, SourceRecord
from tokenshards.pipeline.shards.commit import read_commit

NOBODY: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 12)
    return [path.read_bytes() for path in sorted(folder.rglob("*.*"))]


@pytest.fixture
def context(data: list[bytes], tmp_path: Path) -> JobContext:
    """A table of twelve rows, three of them null, planned as one shard."""
    cells = [None if index in (2, 3, 9) else image for index, image in enumerate(data)]
    (tmp_path / "src").mkdir()
    pq.write_table(pa.table({"image": cells, "label": list(range(12))}), tmp_path / "src" / "t.parquet")
    return open_context(planned_job(tmp_path / "src", tmp_path / "out", shard_rows=100))


def extended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each slice also leave out some files, before its first record and behind its last."""
    read = inputs.read_slice

    def read_more(*arguments: Any) -> Iterator[SourceRecord]:
        yield LeftOutRecord(kind="hidden", count=2, example="t#.hidden")
        yield from read(*arguments)
        yield LeftOutRecord(kind=".json", count=3, example="t#1.json")
        yield LeftOutRecord(kind="hidden", count=1, example="t#.other")

    monkeypatch.setattr(inputs, "read_slice", read_more)


def test_the_four_make_the_inputs_seen(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    extended(monkeypatch)
    seen: list[ShardProgress] = []
    commit = tokenize_shard(context, 0, on_progress=seen.append)
    assert (commit.rows, commit.quarantined, commit.absent, commit.left_out_count, commit.inputs_seen) == (9, 0, 3, 6, 18)
    assert (commit.absent_example, commit.left_out) == ("t.parquet#2", {"hidden": 3, ".json": 3})
    assert commit.left_out_examples == {"hidden": "t#.hidden", ".json": "t#1.json"}
    assert sum(done.inputs for done in seen) == 12, "progress counts inputs, and what is left out is none"
    assert read_commit(context.out, context.plan.plan_id, 0)[0] == commit
    summary = ShardSummary.of(commit)
    assert (summary.inputs, summary.images_tried, summary.inputs_seen) == (12, 9, 18)
    assert context.plan.format_version == "1.1" and b'"format_version":"1.1"' in commit.to_bytes()


def test_ids_of_rows_beside_absent_ones_are_those_of_the_plan(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tokenize_shard(context, 0)
    extended(monkeypatch)
    after = tokenize_shard(context, 0)
    assert before.data == after.data, "what is left out moves no row to another slot"


def test_a_search_for_a_killer_counts_inputs_alone(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    extended(monkeypatch)
    names = list(list_sample_ids(context, 0, NOBODY))
    assert names == [f"t.parquet#{number}" for number in range(12)]
    probe_shard(context, 0, 2, 4, NOBODY)  # two absent inputs
    records = read_inputs(context.source, context.source_config, context.plan, read_shard_rows(context.out, context.plan, 0), NOBODY)
    tried = [record.sample_id for record in records if isinstance(record, ImageRecord)]
    assert tried == [name for index, name in enumerate(names) if index not in (2, 3, 9)]
    commit = tokenize_shard(context, 0, killers=frozenset({names[0], names[2]}))
    assert (commit.rows, commit.quarantined, commit.absent) == (8, 1, 3), "an absent input kills nobody"


def test_an_absent_input_leaves_its_id_to_another(context: JobContext, data: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    one = ImageRecord(sample_id="one", data=data[0])
    found: list[SourceRecord] = [AbsentRecord(sample_id="one"), one, one]
    monkeypatch.setattr(inputs, "read_slice", lambda *_: iter(found))
    rows = read_shard_rows(context.out, context.plan, 0)
    absent, taken, again = read_inputs(context.source, context.source_config, context.plan, rows, NOBODY)
    assert isinstance(absent, AbsentRecord) and taken is one
    assert isinstance(again, FailedRecord) and again.error.reason == Reason.DUPLICATE_ID


def test_a_tar_that_is_read_again_does_not_count_twice(context: JobContext, data: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    bad = FailedRecord(sample_id="a.tar#2", error=BadInput(Reason.EMPTY, "0 bytes"))
    found: list[SourceRecord] = [LeftOutRecord(kind="hidden", count=1, example="x"), ImageRecord(sample_id="a.tar#1", data=data[0]), bad]
    monkeypatch.setattr(inputs, "read_slice", lambda *_: iter(found))

    def read(skip: tuple[str, ...] | None) -> list[SourceRecord]:
        row = PlanRow(kind="tar", sample_id="a.tar", path="a.tar", size=1, version="", inputs=-1, skip=skip)
        return list(read_inputs(context.source, context.source_config, context.plan, [row], NOBODY))

    assert read(None) == found and read(()) == found, "the first generation committed none of its samples, and counted nothing"
    assert read(("a.tar#1",)) == [bad]


def test_a_row_that_has_become_absent_is_no_original(context: JobContext) -> None:
    wanted = frozenset({"t.parquet#1", "t.parquet#2"})
    found = list(read_originals(context.out, context.plan, 0, context.source, context.source_config, wanted))
    assert [record.sample_id for record in found] == ["t.parquet#1", "t.parquet#2"]
    assert isinstance(found[0], ImageRecord) and isinstance(found[1], FailedRecord) and found[1].error.reason == Reason.MISSING


def test_a_decoding_task_sends_every_part_of_a_batch() -> None:
    ray_decode = pytest.importorskip("tokenshards.pipeline.runners.ray_decode")
    assert {part.name for part in fields(DecodedBatch)} == {"images_BHWC", "rows", *ray_decode._FIELDS}


def test_a_shard_without_any_image(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[SourceRecord] = [LeftOutRecord(kind="hidden", count=4, example="x")]
    monkeypatch.setattr(inputs, "read_slice", lambda *_: iter(found))
    commit = tokenize_shard(context, 0)
    assert (commit.data, commit.quarantine, commit.rows, commit.inputs_seen, commit.left_out) == (None, None, 0, 4, {"hidden": 4})
    assert list(list_sample_ids(context, 0, NOBODY)) == []
