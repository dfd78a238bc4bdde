"""One message about a run, in its record in the store: `status` and the terminal that submitted it read the same."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.datasets import SilentReporter, convert, write_images
from tests.pipeline.conversion.test_resume import Telling, summary
from tokenshards.pipeline.errors import TransientStorageError
from tokenshards.pipeline.ledger.heartbeat import Heartbeat, live_runs
from tokenshards.pipeline.ledger.progress import RunProgress
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.submit import job_watch
from tokenshards.pipeline.submit.job_watch import watch_job
from tokenshards.pipeline.submit.submission import Submitted

PROGRESS = RunProgress(
    images_planned=1000,
    images_before=300,
    images_seen=100,
    bytes_in=5_000_000,
    work_seconds=20.0,
    workers={"alive": 3, "waiting_for_store": 1},
    longest={"stage": "waiting_for_store", "input": "s3://b/x.jpg", "seconds": 42.0, "retries_left": 5},
)


class Kept(SilentReporter):
    """Keeps the progress that a person would see."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[RunProgress] = []

    def advance(self, progress: RunProgress) -> None:
        self.shown.append(progress)


def submitted(statuses: list[str]) -> Submitted:
    """Return a job of a cluster whose dashboard answers these statuses, the last one again and again."""

    def job(_: str) -> dict[str, Any]:
        return {"status": statuses.pop(0) if len(statuses) > 1 else statuses[0], "driver_exit_code": 0}

    return Submitted(submission_id="j", dashboard=SimpleNamespace(job=job, log=lambda _: "", address="x"), client=None)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_watch, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(job_watch, "PROGRESS_SECONDS", 0.05)


def test_submit_shows_what_the_record_of_the_run_says_and_reads_no_log(tmp_path: Path) -> None:
    reporter, store = Kept(), Store(str(tmp_path))
    with Heartbeat(store, "p", PROGRESS.to_json):
        end = watch_job(submitted(["PENDING", *["RUNNING"] * 5, "SUCCEEDED"]), reporter, open_out=lambda: store)
    assert end.exit_code == 0 and reporter.shown and all(shown == PROGRESS for shown in reporter.shown)


def test_an_output_that_cannot_be_read_from_here_is_one_sentence_and_the_job_goes_on() -> None:
    def unreadable() -> Store:
        raise TransientStorageError("s3://b/out: there are no credentials")

    reporter = Kept()
    end = watch_job(submitted(["RUNNING"] * 5 + ["SUCCEEDED"]), reporter, open_out=unreadable)
    assert end.exit_code == 0 and reporter.shown == []
    (said,) = [line for line in reporter.lines if "no progress can be shown" in line]
    assert "there are no credentials" in said and "tokenshards status OUT" in said


def test_a_live_run_tells_its_rate_its_end_and_how_its_workers_are(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with Heartbeat(store, "p", PROGRESS.to_json):
        (record,) = live_runs(store)
        said = record.describe(time.time())
    assert record.progress == PROGRESS
    assert "5 images/s, ETA 120 s; workers: 3 alive, 1 waiting for store  waiting for store s3://b/x.jpg for 42 s; it counts" in said


def test_the_bar_and_the_record_tell_the_same(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 12)
    standing = {"workers": {"slow": 1}, "longest": {"stage": "encode", "input": "x", "seconds": 400.0, "retries_left": None}}

    def story(listener: Any) -> None:
        listener.started(0)
        listener.progressed(0, 3, 30, 1)
        listener.watched(standing)
        listener.tick()

    reporter = Kept()
    with pytest.raises(Exception, match="the story is over"):
        convert(tmp_path / "src", tmp_path / "out", shard_rows=4, runner=Telling(story), reporter=reporter)
    recorded = [json.loads(path.read_bytes())["counters"] for path in tmp_path.glob("out/runs/*.json")]
    (last,) = [RunProgress.from_json(counters) for counters in recorded if counters]
    shown = reporter.shown[-1]
    assert (shown.images_planned, shown.images_seen, shown.images_quarantined, shown.workers) == (12, 3, 1, {"slow": 1})
    assert last.to_json() | {"work_seconds": 0} == shown.to_json() | {"work_seconds": 0}


def test_shards_of_another_run_are_done_and_not_this_run_s_work(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 12)

    def story(listener: Any) -> None:
        for shard in (0, 1):
            listener.started(shard)
            listener.progressed(shard, 2, 20, 0)
        listener.committed(0, summary(4))
        listener.committed_elsewhere(1, summary(4))

    reporter = Kept()
    with pytest.raises(Exception, match="the story is over"):
        convert(tmp_path / "src", tmp_path / "out", shard_rows=4, runner=Telling(story), reporter=reporter)
    shown = reporter.shown[-1]
    assert (shown.images_seen, shown.images_before, shown.images_done, shown.bytes_in, shown.shards_committed) == (4, 4, 8, 40, 1)


def test_the_watch_ends_while_a_store_hangs() -> None:
    """A read that does not come back must not keep the end of the job from the person who waits."""
    answer = threading.Event()

    def hangs() -> Store:
        answer.wait()
        raise TransientStorageError("late")

    assert watch_job(submitted(["SUCCEEDED"]), Kept(), open_out=hangs).exit_code == 0
    assert not answer.is_set()
    answer.set()
