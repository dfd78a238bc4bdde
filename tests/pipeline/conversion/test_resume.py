"""What a run counts while its shards are in flight, and after they failed."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.datasets import SilentReporter, call_cli, convert, write_images
from tests.inline import InlineRunner
from tests.submitting import foreign_folder
from tokenshards.pipeline.errors import IncompleteError, TooManyBadInputsError
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary
from tokenshards.pipeline.ledger.closing import max_bad_for
from tokenshards.pipeline.ledger.progress import RunProgress
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.runners.stage_usage import RunUsage
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig

Story = Callable[[RunListener], None]


class Counts(SilentReporter):
    """Keeps the last counts that a person would see."""

    seen = (0, 0, 0)

    def advance(self, progress: RunProgress) -> None:
        self.seen = progress.images_seen, progress.bytes_in, progress.images_quarantined
        self.progress = progress


class Telling:
    """A runner that does nothing but tell its listener a story."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        self._story(listener)
        listener.tick()
        listener.measured(RunUsage())
        return dict.fromkeys(shards, "the story is over")


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("src")
    write_images(folder, 12)
    return folder


def told(src: Path, out: Path, story: Story, **changes: float) -> tuple[int, int, int]:
    reporter = Counts()
    with pytest.raises(IncompleteError):
        convert(src, out, runner=Telling(story), reporter=reporter, shard_rows=4, **changes)
    return reporter.seen


def summary(inputs: int) -> ShardSummary:
    return ShardSummary(rows=inputs, quarantined=1, inputs_seen=inputs, bytes_in=10 * inputs, seconds={})


def test_shards_in_flight_count_until_they_are_committed(src: Path, tmp_path: Path) -> None:
    def story(listener: RunListener) -> None:
        listener.started(0)
        listener.progressed(0, 2, 20, 0)
        listener.progressed(0, 1, 10, 1)
        listener.started(1)
        listener.progressed(1, 1, 5, 0)
        listener.committed(0, summary(4))

    assert told(src, tmp_path / "out", story) == (5, 45, 1)


def test_a_shard_that_fails_counts_no_more_and_its_next_try_counts_once(src: Path, tmp_path: Path) -> None:
    def fails(listener: RunListener) -> None:
        listener.started(0)
        listener.progressed(0, 3, 30, 2)
        listener.abandoned(0)

    def fails_and_is_committed(listener: RunListener) -> None:
        fails(listener)
        listener.abandoned(0)
        listener.started(0)
        listener.progressed(0, 4, 40, 1)
        listener.committed(0, summary(4))

    assert told(src, tmp_path / "one", fails) == (0, 0, 0)
    assert told(src, tmp_path / "two", fails_and_is_committed) == (4, 40, 1)


def test_bad_inputs_of_an_attempt_that_failed_stop_nothing(src: Path, tmp_path: Path) -> None:
    def story(listener: RunListener) -> None:
        listener.started(0)
        listener.progressed(0, 4, 40, 4)
        listener.abandoned(0)

    told(src, tmp_path / "out", story, max_bad=0.2)

    def still_flying(listener: RunListener) -> None:
        listener.started(0)
        listener.progressed(0, 4, 40, 4)

    with pytest.raises(TooManyBadInputsError, match="4 of 12 inputs failed permanently"):
        convert(src, tmp_path / "flying", runner=Telling(still_flying), shard_rows=4, max_bad=0.2)


def test_a_run_that_another_driver_finished_took_its_time_too(src: Path, tmp_path: Path) -> None:
    """Images per second are images by seconds: without these they were counted in trillions."""

    def story(listener: RunListener) -> None:
        convert(src, tmp_path / "out", shard_rows=4, join=True)
        listener.committed(0, summary(4))

    outcome = convert(src, tmp_path / "out", runner=Telling(story), shard_rows=4, join=True)
    assert outcome.images == 4 and not outcome.already_complete
    assert outcome.seconds > 0.01


def test_a_run_that_stops_by_max_bad_shows_an_example_of_each_reason(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was committed, so OUT/quarantine does not exist yet: the inputs of the shard in work are looked at again, by our own code."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(foreign_folder(tmp_path / "foreign"))
    write_images(tmp_path / "src", 4, bad=3)
    (tmp_path / "src" / "empty.jpg").write_bytes(b"")

    def story(listener: RunListener) -> None:
        listener.started(0)
        listener.progressed(0, 8, 80, 4)

    with pytest.raises(TooManyBadInputsError) as stopped:
        convert(tmp_path / "src", tmp_path / "out", runner=Telling(story), max_bad=0.2)
    said = str(stopped.value)
    assert "4 of 8 inputs failed permanently, which is more than --max-bad 0.2, such as\n" in said
    assert "\n  empty: empty.jpg (" in said and "/bad_000" in said
    assert not (tmp_path / "out" / "quarantine").exists()


def test_what_was_committed_gives_examples_at_the_end(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 4, bad=3)
    convert(tmp_path / "src", tmp_path / "out", runner=InlineRunner(), max_bad=0.5)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(TooManyBadInputsError, match=r"3 of 7 inputs .*, such as\n  \w+: .*bad_000"):
        convert(tmp_path / "src", tmp_path / "out", runner=InlineRunner(), max_bad=0.2)


def test_mended_files_are_taken_by_the_order_that_the_messages_name(tmp_path: Path) -> None:
    """After exit code 5 `retry-failed` said `Finish it with tokenize`, tokenize stopped by the same failures, and so on for ever."""
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 7, classes=0, bad=3)
    tokenize = ("tokenize", str(src), str(out), "--size", "16", "--codes", "4", "--workers", "1")
    _, said = call_cli(*tokenize, expect=5)
    assert "such as --max-bad 0.3. After that" in said and f"tokenshards retry-failed {out}" in said
    for path in src.glob("bad_*"):
        path.write_bytes(next(src.glob("img_*.jpg")).read_bytes())
    _, said = call_cli("retry-failed", str(out), expect=3)
    assert "exit code 5, add the larger --max-bad" in said
    assert "after exit code 5 with the larger --max-bad" in call_cli("quarantine", str(out))[0]
    status = call_cli("status", str(out))[0]
    assert "no: every shard is committed, but 3 inputs failed" in " ".join(status.split()) and "--max-bad 0.3" in " ".join(status.split())
    call_cli(*tokenize, "--max-bad", "0.3")
    call_cli("retry-failed", str(out), "--workers", "1")
    assert load_manifest(Store(str(out))).totals["images_committed"] == 10
    assert "complete yes" in " ".join(call_cli("status", str(out))[0].split())


def test_the_proposed_max_bad_accepts_the_failures() -> None:
    for bad, inputs in itertools.product(range(101), (100, 101, 777)):
        share = max_bad_for(bad, inputs)
        assert bad <= share * inputs and (share == 0.01 or bad > (share - 0.011) * inputs)


def test_a_proposal_before_the_end_is_by_the_inputs_seen(src: Path, tmp_path: Path) -> None:
    """By the inputs of the whole plan the same failures would stop the next run again."""

    def story(listener: RunListener) -> None:
        listener.started(0)
        listener.progressed(0, 4, 40, 3)

    with pytest.raises(TooManyBadInputsError, match=r"(?s)3 of 12 inputs .*--max-bad 0\.75\. After"):
        convert(src, tmp_path / "out", runner=Telling(story), shard_rows=4, max_bad=0.2)


def tars(folder: Path, count: int, bad: int) -> Path:
    """Write tars of 5 inputs each; all inputs of the first `bad` tars are broken."""
    write_images(folder / "images", 5, classes=0)
    whole = sorted((folder / "images").iterdir())
    (folder / "src").mkdir()
    for number in range(count):
        with tarfile.open(folder / "src" / f"{number:02d}.tar", "w") as archive:
            for index, path in enumerate(whole):
                data = b"no image" if number < bad else path.read_bytes()
                info = tarfile.TarInfo(f"{number:02d}{index}{path.suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return folder / "src"


def test_a_hopeless_run_over_tars_stops_before_its_end(tmp_path: Path) -> None:
    src, runner = tars(tmp_path, 10, 4), InlineRunner()
    with pytest.raises(TooManyBadInputsError, match=r"15 of about 50 inputs failed permanently, .* more than --max-bad 0\.25, such as"):
        convert(src, tmp_path / "out", runner=runner, max_bad=0.25, fit=FitConfig(size=16, codes=4, iterations=2))
    assert runner.shards == [0, 1, 2], "it read on after the limit was passed"


def test_a_first_bad_tar_of_many_stops_nothing(tmp_path: Path) -> None:
    src = tars(tmp_path, 10, 1)
    outcome = convert(src, tmp_path / "out", runner=InlineRunner(), max_bad=0.25, fit=FitConfig(size=16, codes=4, iterations=2))
    assert outcome.manifest.totals["images_quarantined"] == 5
