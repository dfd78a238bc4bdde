"""What a report counts, and that `status` needs a listing and reads no commits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.datasets import call_cli, convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.errors import MissingObjectError
from tokenshards.pipeline.reports.storage_table import dataset_report, status_report
from tokenshards.pipeline.storage.store import Store


class CountingStore(Store):
    """Counts listings, and notes what is read."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.listed: list[str] = []
        self.got: list[str] = []

    def list(self, prefix: str = "", **options):  # type: ignore[no-untyped-def]
        self.listed.append(prefix)
        return super().list(prefix, **options)

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self.got.append(path)
        return super().read(path, start, end)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "src", 40, bad=4)
    convert(folder / "src", folder / "out", shard_rows=11, runner=InlineRunner())
    return folder / "out"


def test_status_of_an_unfinished_dataset_reads_no_commit(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    sorted((tmp_path / "out").glob("commits/*/*"))[0].unlink()
    store = CountingStore(str(tmp_path / "out"))
    report = status_report(store)
    assert [path for path in store.got if path.startswith("commits/")] == []
    assert store.listed == ["", "runs"]
    assert (report.shards_committed, report.shards_planned, report.complete, report.estimated) == (3, 4, False, True)
    assert report.images_planned == 44 and report.images_planned_exact
    assert report.images_committed + report.images_quarantined == 33, "three of four shards"
    assert ("images", f"about {report.images_committed} of 44 planned") in report.rows()
    assert report.bytes_shards == sum(path.stat().st_size for path in (tmp_path / "out" / "shards").iterdir())
    exact = dataset_report(Store(str(tmp_path / "out")))
    assert exact.to_json().keys() ^ report.to_json().keys() == {"estimated"}


def test_status_of_a_finished_dataset_is_exact(made: Path) -> None:
    store = CountingStore(str(made))
    assert status_report(store) == dataset_report(Store(str(made)))
    assert [path for path in store.got if path.startswith("commits/")] == []


def test_status_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(MissingObjectError, match="no dataset is here"):
        status_report(Store(str(tmp_path)))


def test_quiet_builds_no_report(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenshards.pipeline.reports.storage_table.dataset_report", None)  # whoever calls it fails
    assert call_cli("tokenize", str(made.parent / "src"), str(made), "--max-bad", "1", "--quiet") == ("", "")


def test_images_without_a_label_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 6)
    write_images(tmp_path / "src", 2, classes=0, seed=1)
    out = tmp_path / "out"
    convert(tmp_path / "src", out, runner=InlineRunner())
    assert dataset_report(Store(str(out))).unlabelled == 2
    assert json.loads(call_cli("status", str(out), "--json")[0])["unlabelled"] == 2
    assert "without a label" in call_cli("status", str(out))[0]
    write_images(tmp_path / "flat", 3, classes=0)
    convert(tmp_path / "flat", tmp_path / "none", runner=InlineRunner())
    assert dataset_report(Store(str(tmp_path / "none"))).unlabelled == 0, "a source without labels lacks none"
