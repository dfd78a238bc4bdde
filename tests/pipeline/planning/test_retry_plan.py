"""Which plan rows a retry makes of what was quarantined: files one by one, rows by number, tars whole but for what they gave."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import IncompleteError, MissingObjectError, PlanError
from tokenshards.pipeline.planning.plan import Plan, load_plan
from tokenshards.pipeline.planning.retry_plan import failed_entries, plan_retry, rows_to_retry
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.shards.commit import read_commit
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.shards.writer import encode_quarantine, read_quarantine
from tokenshards.pipeline.sources import source_root
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig

BAD = b"\xff\xd8\xff\xe0 no image"


def retried(src: Path, out: Path) -> tuple[list[PlanRow], Plan]:
    store = Store(str(out))
    plan = load_plan(store)
    assert plan is not None
    return list(rows_to_retry(store, source_root(str(src), SourceConfig()), plan, plan.shard_numbers)), plan


def test_a_file_is_planned_as_it_is_now(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 5, bad=2)
    convert(src, out, runner=InlineRunner())
    mended, gone = sorted(src.rglob("bad_*"))
    mended.write_bytes(b"twelve bytes")
    gone.unlink()
    rows, plan = retried(src, out)
    found = {row.sample_id: row for row in rows}
    assert sorted(found) == [path.relative_to(src).as_posix() for path in (mended, gone)]
    now, lost = (found[path.relative_to(src).as_posix()] for path in (mended, gone))
    assert now.size == 12 and now.version.startswith("12-") and now.label == "class_0" and now.skip is None
    assert lost.size != 12, "what is missing keeps what was planned, and fails again"


def test_rows_of_a_table_are_taken_by_their_number(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 9, classes=0)
    data = [path.read_bytes() for path in sorted((tmp_path / "images").iterdir())]
    data[2] = data[7] = BAD
    pq.write_table(pa.table({"image": data}), tmp_path / "t.parquet", row_group_size=5)
    convert(tmp_path / "t.parquet", tmp_path / "out", runner=InlineRunner())
    rows, _ = retried(tmp_path / "t.parquet", tmp_path / "out")
    taken = sorted((row.row_start, row.inputs, row.only) for row in rows)
    assert taken == [(0, 1, ("t.parquet#2",)), (5, 1, ("t.parquet#7",))]


def test_a_tar_is_read_again_but_for_what_it_gave(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4, classes=0)
    (tmp_path / "src").mkdir()
    with tarfile.open(tmp_path / "src" / "a.tar", "w") as archive:
        for index, path in enumerate(sorted((tmp_path / "images").iterdir())):
            data = BAD if index == 1 else path.read_bytes()
            info = tarfile.TarInfo(f"k{index}{path.suffix}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    convert(tmp_path / "src", tmp_path / "out", fit=FitConfig(size=16, codes=4, iterations=2), runner=InlineRunner())
    (row,), _ = retried(tmp_path / "src", tmp_path / "out")
    assert (row.kind, row.inputs, row.skip) == ("tar", -1, ("a.tar#k0", "a.tar#k2", "a.tar#k3"))


def test_a_failure_that_no_planned_row_explains_is_refused(tmp_path: Path) -> None:
    """Left out silently, it would be neither committed nor quarantined."""
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 3, bad=1)
    convert(src, out, runner=InlineRunner())
    store = Store(str(out))
    commit, _ = read_commit(store, retried(src, out)[1].plan_id, 0)
    assert commit.quarantine is not None
    failures = read_quarantine(store.read(commit.quarantine.path))
    failures[0]["sample_id"] = "nobody.jpg"
    store.write(commit.quarantine.path, encode_quarantine(failures))
    with pytest.raises(PlanError, match="1 input is quarantined, but only 0 are in the plan of shard 0"):
        retried(src, out)


def test_when_there_is_nothing_to_retry(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 3)
    store, config = Store(str(out)), SourceConfig()
    with pytest.raises(MissingObjectError, match="no dataset is here"):
        plan_retry(store, source_root(str(src), config), config)
    convert(src, out, runner=InlineRunner())
    assert failed_entries(load_manifest(store)) == [] and plan_retry(store, source_root(str(src), config), config) is None
    (out / "manifest.json").unlink()
    with pytest.raises(
        IncompleteError,
        match="is not complete yet.*exit code 5, add the larger --max-bad that it names. Then run `tokenshards retry-failed",
    ):
        plan_retry(store, source_root(str(src), config), config)
