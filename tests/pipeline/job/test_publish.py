"""The one way to publish a shard: its order, its signs of life, and what it does where another driver was faster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tests.pipeline.planned import planned_job
from tests.pipeline.shards.samples import make_rows, make_shard, make_spec, make_tokens
from tokenshards.pipeline.errors import PlanError, TransientStorageError
from tokenshards.pipeline.job.context import open_context
from tokenshards.pipeline.job.publish import ShardContent, committed_by_another, publish_shard
from tokenshards.pipeline.job.shard_job import JobContext, tokenize_shard
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.commit import Commit, commit_path, read_commit
from tokenshards.pipeline.storage.store import Store

FAILED = {"sample_id": "b.jpg", "uri": "b.jpg", "stage": "decode", "reason": "truncated", "detail": "", "label": None, "data": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "src", 10, bad=1)
    return folder


@pytest.fixture
def context(made: Path, tmp_path: Path) -> JobContext:
    return open_context(planned_job(made / "src", tmp_path / "out", shard_rows=6))


def content(context: JobContext, rows: int, failed: int = 0) -> ShardContent:
    spec = context.tokenizer.spec
    ids_BLQ = np.zeros((rows, spec.layout.sites, spec.layout.ids_per_site), spec.id_dtype)
    return ShardContent(
        rows=make_rows(rows, labels=[f"class_{row % 2}" for row in range(rows)]),
        tokens=TokenBatch(ids_BLQ) if rows else None,
        failed=[{**FAILED, "sample_id": f"{index}.jpg"} for index in range(failed)],
        inputs_seen=rows + failed,
        bytes_in=9,
        seconds={"decode": 0.5},
    )


def publish(context: JobContext, rows: int, failed: int = 0, **options: object) -> Commit:
    return publish_shard(
        context.out, context.plan, 0, content(context, rows, failed), context.tokenizer, made_by={"device": "x"}, **options
    )  # type: ignore[arg-type]


def test_the_commit_says_what_was_published(context: JobContext) -> None:
    commit = publish(context, 5, 2, attempt=3)
    assert read_commit(context.out, context.plan.plan_id, 0)[0] == commit == committed_by_another(context.out, context.plan, 0)
    assert (commit.rows, commit.quarantined, commit.inputs_seen, commit.attempt) == (5, 2, 7, 3)
    assert commit.reasons == {"truncated": 2} and commit.labels == [["class_0", 3], ["class_1", 2]]
    assert commit.seconds.keys() == {"decode", "write"} and commit.id_count == 5 * 2 * context.tokenizer.spec.layout.sites
    for reference in (commit.data, commit.quarantine):
        assert reference is not None
        found = context.out.info(reference.path)
        assert found is not None and found.size == reference.size


def test_a_shard_whose_inputs_all_failed_has_no_file(context: JobContext) -> None:
    commit = publish(context, 0, 2)
    assert commit.data is None and commit.quarantine is not None and commit.histogram == []
    assert next(context.out.list("shards"), None) is None


def test_a_slow_codec_gives_signs_of_life_after_each_row_group() -> None:
    """zstd 19 over a million rows takes most of an hour: longer than any worker may be silent."""
    spec, beats = make_spec("grid"), []
    make_shard(spec, make_tokens(spec, 5000), on_progress=lambda: beats.append(1))
    assert len(beats) == 3, "2,048 rows each"
    beats.clear()
    make_shard(spec, make_tokens(spec, 9000), codec="publish", on_progress=lambda: beats.append(1))
    assert len(beats) == 4, "two row groups of 8,192 rows, in each of two encodings"


def test_signs_of_life_reach_the_runner(context: JobContext) -> None:
    beats: list[str] = []
    publish(context, 5, 1, on_progress=lambda: beats.append("alive"))
    assert beats == ["alive"], "one row group"


class FailingStore(Store):
    """Refuses to write one kind of object."""

    refused = ""

    def write(self, path: str, data: bytes) -> None:
        if path.startswith(self.refused):
            raise TransientStorageError(f"{path}: the store is away")
        super().write(path, data)


@pytest.mark.parametrize("refused", ["shards/", "quarantine/", "commits/"])
def test_the_commit_comes_last(context: JobContext, refused: str) -> None:
    store = FailingStore(context.out.location)
    store.refused = refused
    with pytest.raises(TransientStorageError):
        publish(replace(context, out=store), 5, 1)
    assert committed_by_another(context.out, context.plan, 0) is None
    written = {info.path.split("/")[0] for info in context.out.list() if info.path.startswith(("shards", "quarantine", "commits"))}
    assert written == {"shards/": set(), "quarantine/": {"shards"}, "commits/": {"shards", "quarantine"}}[refused]


def test_a_worker_that_was_slower_than_the_end_of_the_run_takes_the_other_commit(made: Path, tmp_path: Path) -> None:
    """It used to say `shard 0 is left uncommitted: … its shards must not change`, beside exit code 0."""
    out = tmp_path / "out"
    convert(made / "src", out, shard_rows=6, batch_rows=8, runner=InlineRunner())
    context = open_context(planned_again(made / "src", out))
    before = {path: path.read_bytes() for folder in ("shards", "commits") for path in (out / folder).rglob("*.*")}
    theirs, _ = read_commit(context.out, context.plan.plan_id, 0)
    assert tokenize_shard(context, 0) == theirs
    assert publish(context, 3) == theirs
    assert {path: path.read_bytes() for path in before} == before and len(list((out / "shards").iterdir())) == len(before) // 2
    (out / commit_path(context.plan.plan_id, 0)).unlink()
    with pytest.raises(PlanError, match="is complete, but shard 0 has no valid commit.*tokenshards verify"):
        publish(context, 3)


def planned_again(src: Path, out: Path):  # type: ignore[no-untyped-def]
    """Return the job of a dataset that is complete."""
    pointer = (out / "manifest.json").read_bytes()
    (out / "manifest.json").unlink()
    commits = {path: path.read_bytes() for path in out.glob("commits/*/*")}
    for path in commits:
        path.unlink()
    job = planned_job(src, out, shard_rows=6)
    for path, data in commits.items():
        path.write_bytes(data)
    (out / "manifest.json").write_bytes(pointer)
    return job


def test_a_joined_worker_looks_for_the_other_commit(context: JobContext) -> None:
    theirs = publish(context, 5)
    assert publish(context, 4, join=True) == theirs
    assert publish(context, 4).rows == 4, "without --join the last put wins"
    joined = replace(context, join=True)
    done = tokenize_shard(joined, 0)
    assert done.rows == 4 and done.data is not None
    context.out.write(done.data.path, b"cut")
    assert publish(context, 5, join=True).rows == 5, "a commit that names a damaged object is no commit"
