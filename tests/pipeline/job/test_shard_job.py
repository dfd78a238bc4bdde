"""The work on one shard without a runner: what it counts, what it leaves undone, and what a search for a killer may do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.datasets import write_images
from tests.pipeline.planned import planned_job
from tokenshards.pipeline.errors import TransientStorageError
from tokenshards.pipeline.job.context import open_context
from tokenshards.pipeline.job.shard_job import JobContext, ShardProgress, list_sample_ids, probe_shard, tokenize_shard
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.writer import read_quarantine
from tokenshards.pipeline.storage.store import Store

NOBODY: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> JobContext:
    folder = tmp_path_factory.mktemp("planned")
    write_images(folder / "src", 20, bad=2)
    return open_context(planned_job(folder / "src", folder / "out", shard_rows=100))


@pytest.fixture
def context(planned: JobContext, tmp_path: Path) -> JobContext:
    """The same plan and source, and an output of its own."""
    for info in planned.out.list():
        Store(str(tmp_path)).write(info.path, planned.out.read(info.path))
    return replace(planned, out=Store(str(tmp_path)))


def test_every_input_is_a_row_or_a_quarantine_row(context: JobContext) -> None:
    seen: list[ShardProgress] = []
    commit = tokenize_shard(context, 0, on_progress=seen.append)
    assert (commit.rows, commit.quarantined, commit.inputs_seen) == (20, 2, 22)
    assert sum(done.inputs for done in seen) == 22 and sum(done.quarantined for done in seen) == 2
    assert [done.inputs for done in seen if done.inputs] == [8, 8, 6], "a report for each batch"
    assert commit.data is not None and commit.quarantine is not None
    rows = ShardReader.open(context.out, commit.data.path).read_columns(["sample_id"])["sample_id"].to_pylist()
    failed = [row["sample_id"] for row in read_quarantine(context.out.read(commit.quarantine.path))]
    assert sorted(rows + failed) == sorted(list_sample_ids(context, 0, NOBODY))


def test_commits_of_the_same_work_differ_in_what_it_took_alone(context: JobContext) -> None:
    first, second = tokenize_shard(context, 0), tokenize_shard(context, 0, attempt=2)
    assert replace(second, attempt=1, seconds=first.seconds) == first
    assert first.made_by.keys() >= {"tokenshards", "python", "numpy", "pyarrow", "decoder", "device", "host", "pid", "source"}


def test_killers_are_quarantined_unread(context: JobContext) -> None:
    names = sorted(list_sample_ids(context, 0, NOBODY))
    killers = frozenset(name for name in names if "img_" in name) - {next(name for name in names if "img_" in name)}
    commit = tokenize_shard(context, 0, killers=killers)
    assert (commit.rows, commit.quarantined) == (1, 21) and commit.reasons["killed_worker"] == 19
    assert commit.quarantine is not None
    rows = {row["sample_id"]: row for row in read_quarantine(context.out.read(commit.quarantine.path))}
    for name in killers:
        row = rows[name]
        assert (row["reason"], row["data"]) == ("killed_worker", None) and row["uri"] == context.source.place(name)
        assert row["detail"] == "the worker process died or hung each time that a worker handled this input"


def test_a_probe_publishes_nothing(context: JobContext) -> None:
    before = sorted(info.path for info in context.out.list())
    probe_shard(context, 0, 3, 20, NOBODY)
    assert sorted(info.path for info in context.out.list()) == before


class GoneStore(Store):
    """The source's store goes away after some reads."""

    reads = 0

    def info(self, path: str):  # type: ignore[no-untyped-def]
        raise TransientStorageError("the store is away")

    def join(self, path: str) -> str:
        GoneStore.reads += 1
        if GoneStore.reads > 10:
            raise TransientStorageError("the store is away")
        return super().join(path)


def test_an_outage_quarantines_and_commits_nothing(context: JobContext) -> None:
    before = sorted(info.path for info in context.out.list())
    with pytest.raises(TransientStorageError, match="the store is away"):
        tokenize_shard(replace(context, source=GoneStore(context.source.location)), 0)
    assert sorted(info.path for info in context.out.list()) == before
