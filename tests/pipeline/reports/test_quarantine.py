"""`quarantine` lists what stands: each input once with its reason, and after a retry only what failed again."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.datasets import SilentReporter, call_cli, convert, quarantine_of, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.conversion.tokenize import retry_failed
from tokenshards.pipeline.errors import ConfigError, IncompleteError, MissingObjectError
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.planning.plan import load_chain
from tokenshards.pipeline.reports.quarantine import quarantined_inputs
from tokenshards.pipeline.reports.quarantine_export import export_inputs, sniff_extension
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.writer import read_quarantine
from tokenshards.pipeline.storage.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "src", 9, bad=2)
    (folder / "src" / "empty.jpg").write_bytes(b"")
    convert(folder / "src", folder / "out", shard_rows=4, runner=InlineRunner())
    return folder


def test_every_failed_input_with_its_reason(made: Path) -> None:
    out = made / "out"
    listed = json.loads(call_cli("quarantine", str(out), "--json")[0])
    assert {row["sample_id"]: row["reason"] for row in listed["inputs"]} == quarantine_of(out)
    assert listed["quarantined"] == 3 and listed["reasons"]["empty"] == 1
    assert all("data" not in row for row in listed["inputs"]), "bytes of images do not belong on a terminal"
    said, _ = call_cli("quarantine", str(out), "--reason", "empty")
    assert "1 input in quarantine (1 empty)" in said and "empty.jpg" in said and "bad_" not in said
    assert f"tokenshards retry-failed {out}" in said
    assert f"tokenshards quarantine {out}" in call_cli("status", str(out))[0]


def test_a_reason_that_does_not_exist(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'torn'; expected one of .*truncated"):
        list(quarantined_inputs(Store(str(made / "out")), "torn"))
    with pytest.raises(MissingObjectError, match="no dataset is here"):
        list(quarantined_inputs(Store(str(tmp_path))))


def test_after_a_retry_only_what_failed_again(made: Path) -> None:
    out = made / "out"
    (made / "src" / "empty.jpg").write_bytes(next((made / "src").rglob("img_*.jpg")).read_bytes())
    assert retry_failed(str(out), None, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner()) is not None
    found = list(quarantined_inputs(Store(str(out))))
    assert len(found) == 2 and all("bad_" in row["sample_id"] for row in found)
    (out / "manifest.json").unlink()
    assert len(list(quarantined_inputs(Store(str(out))))) == 2


# Counts with examples, also of a job that is not finished


def test_counts_by_reason_with_examples(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 4, bad=6)
    (tmp_path / "src" / "empty.jpg").write_bytes(b"")
    convert(tmp_path / "src", tmp_path / "out", shard_rows=4, runner=InlineRunner())
    said, _ = call_cli("quarantine", str(tmp_path / "out"))
    lines = [line.split() for line in said.splitlines()]
    assert [line[:2] for line in lines if line[:1] in (["truncated"], ["empty"])] == [["truncated", "6"], ["empty", "1"]]
    assert said.count("bad_") == 3 and said.count("empty.jpg") == 1 and "--reason NAME lists more" in said
    said, _ = call_cli("quarantine", str(tmp_path / "out"), "--reason", "truncated")
    assert said.count("bad_") == 6 and "empty.jpg" not in said


class StopsAfter(InlineRunner):
    """Leaves the shards from `stop` on undone."""

    def __init__(self, stop: int) -> None:
        super().__init__()
        self.stop = stop

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        super().run(job, shards[: self.stop], listener)
        return dict.fromkeys(shards[self.stop :], "stopped")


def test_a_job_that_is_not_finished_lists_what_failed_so_far(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 9, bad=7)
    with pytest.raises(IncompleteError):
        convert(tmp_path / "src", tmp_path / "out", shard_rows=4, runner=StopsAfter(2))
    store = Store(str(tmp_path / "out"))
    rows = [row for info in store.list("quarantine") for row in read_quarantine(store.read(info.path), info.path)]
    assert 0 < len(rows) < 7 and sorted(row["sample_id"] for row in quarantined_inputs(store)) == sorted(row["sample_id"] for row in rows)


def png(name: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (16, 16), (len(name), 9, 9)).save(sink, "PNG")
    return sink.getvalue()


def write_tar(path: Path, mended: bool) -> None:
    with tarfile.open(path, "w") as archive:
        for index in range(4):
            data = png(str(index)) if mended or index % 2 else b"\xff\xd8 no image"
            info = tarfile.TarInfo(f"{index}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["folder", "tar", "table"])
def test_a_retry_at_work_lists_what_still_waits_and_what_failed_again(kind: str, tmp_path: Path) -> None:
    source, out = tmp_path / "src", tmp_path / "out"
    source.mkdir()

    def write(mended: int) -> None:
        """Write the source with the first `mended` failures mended."""
        if kind == "folder":
            for index in range(6):
                (source / f"{index}.png").write_bytes(png("a") if index < 2 + mended else b"\xff\xd8 no image")
        elif kind == "tar":
            for index in range(3):
                write_tar(source / f"{index}.tar", index < mended)
        else:
            cells = [png(str(index)) if index < 2 + mended else b"\xff\xd8 no image" for index in range(6)]
            pq.write_table(pa.table({"image": cells, "label": list(range(6))}), source / "t.parquet", row_group_size=1)

    write(0)
    convert(source, out, shard_rows=2, runner=InlineRunner())
    store = Store(str(out))
    before = {row["sample_id"] for row in quarantined_inputs(store)}
    assert len(before) == (6 if kind == "tar" else 4)
    write(1)
    with pytest.raises(IncompleteError):
        retry_failed(str(out), None, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), StopsAfter(1))
    found = [row["sample_id"] for row in quarantined_inputs(store)]
    assert len(found) == len(set(found)) and set(found) <= before
    assert before - set(found) == ids_of_shard(store, load_chain(store)[-1].first_shard) & before
    retry_failed(str(out), None, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner())
    assert {row["sample_id"] for row in quarantined_inputs(store)} == set(quarantine_of(out)) and len(quarantine_of(out)) < len(before)


def ids_of_shard(store: Store, shard: int) -> set[str]:
    """Return the sample ids of the rows that a shard committed."""
    paths = [info.path for info in store.list("shards") if info.path.startswith(f"shards/{shard:08d}")]
    return {name for path in paths for name in ShardReader.open(store, path).read_columns(("sample_id",))["sample_id"].to_pylist()}


# The kept bytes as files


def read_index(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_kept_bytes_are_put_out_by_number_and_what_they_are(tmp_path: Path) -> None:
    source, out, folder = tmp_path / "src", tmp_path / "out", tmp_path / "look"
    write_images(source, 4)
    contents = {
        "=cmd|' /C calc'!A0.jpg": b"<!DOCTYPE html><p>gone",
        "x\\..\\..\\evil.jpg": b"\xff\xd8\xff\xe0 torn",
        'a,b\n"c".png': png("a")[:40],
        "ä/x .. .webp": b"version https://git-lfs.github.com/spec/v1\n",
        "empty.png": b"",
        "noise.png": bytes(range(200)),
    }
    for name, data in contents.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
    convert(source, out, runner=InlineRunner())
    said, _ = call_cli("quarantine", str(out), "--export", str(folder))
    rows = read_index(folder)
    assert {row["sample_id"] for row in rows} == set(contents) and f"6 files are in {folder}" in said
    assert {row["sample_id"]: row["file"].partition(".")[2] for row in rows} == dict(
        zip(contents, ("html", "jpg", "png", "lfs", "bin", "bin"), strict=True)
    )
    for number, row in enumerate(rows):
        assert row["file"].startswith(f"{number:06d}.") and (folder / row["file"]).read_bytes() == contents[row["sample_id"]]
        assert row["reason"] and row["stage"] and row["detail"]
    assert {path.name for path in folder.iterdir()} == {"index.csv", *(row["file"] for row in rows)}
    exported = json.loads(call_cli("quarantine", str(out), "--reason", "empty", "--export", str(folder), "--json")[0])
    assert exported["exported"]["files"] == 1 and [path.name for path in sorted(folder.iterdir())] == ["000000.bin", "index.csv"]


def test_a_folder_of_something_else_is_not_touched(made: Path, tmp_path: Path) -> None:
    out = str(made / "out")
    foreign = {
        "photo": {"000001.jpg": b"mine", "holiday.jpg": b"mine"},
        "numbers": {"000001.jpg": b"mine"},
        "index": {"index.csv": b"a,b\n1,2\n"},
    }
    for name, contents in foreign.items():
        (tmp_path / name).mkdir()
        for file, data in contents.items():
            (tmp_path / name / file).write_bytes(data)
        _, said = call_cli("quarantine", out, "--export", str(tmp_path / name), expect=2)
        assert "--export" in said and "expected a new or empty folder" in said
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == contents
    (tmp_path / "file").write_bytes(b"mine")
    call_cli("quarantine", out, "--export", str(tmp_path / "file"), expect=2)
    assert (tmp_path / "file").read_bytes() == b"mine"
    (tmp_path / "empty").mkdir()
    call_cli("quarantine", out, "--export", str(tmp_path / "empty"))


def test_inputs_without_bytes_are_in_the_index_alone(tmp_path: Path) -> None:
    rows = [
        {"sample_id": name, "reason": "missing", "stage": "fetch", "detail": "", "uri": "", "label": None, "data": None} for name in "ab"
    ]
    found = export_inputs(iter(rows), str(tmp_path / "look"))
    assert (found.files, found.without_bytes) == (0, 2) and [row["file"] for row in read_index(tmp_path / "look")] == ["", ""]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_what_the_bytes_of_an_image_begin_with(format: str) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, format)
    expected = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}.get(format, format.lower())
    assert sniff_extension(sink.getvalue()) == expected
