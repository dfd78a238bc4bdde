"""What a damaged commit named goes when the run that replaced it has written its manifest: by name, and never beside another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest

from tests.datasets import SilentReporter, call_cli, content, convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.ledger.heartbeat import Heartbeat
from tokenshards.pipeline.ledger.repair import repair_dataset
from tokenshards.pipeline.ledger.replaced import drop_commit, dropped_path, read_dropped
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_plan
from tokenshards.pipeline.shards.commit import ObjectRef
from tokenshards.pipeline.storage.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "src", 16)
    convert(folder / "src", folder / "out", shard_rows=8, runner=InlineRunner())
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A dataset with a flipped bit in shard 0, one of whose images is gone: done again, the shard gets another name."""
    for name in ("src", "out"):
        shutil.copytree(made / name, tmp_path / name)
    shard = next((tmp_path / "out").glob("shards/00000000-*"))
    gone = duckdb.sql(f"select sample_id from '{shard}'").fetchall()[0][0]
    (tmp_path / "src" / gone).unlink()
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 16
    shard.write_bytes(data)
    assert repair_dataset(Store(str(tmp_path / "out")), apply=True).tokenize_needed
    return tmp_path


def shards(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "shards").iterdir())


def rows_of_glob(out: Path) -> int:
    return int(duckdb.sql(f"select count(*) from '{out}/shards/*.parquet'").fetchall()[0][0])


def test_the_glob_is_the_dataset_again(folder: Path) -> None:
    out, reporter = folder / "out", SilentReporter()
    (damaged,) = out.glob("shards/00000000-*")
    assert len(list(out.glob("commits/*/00000000.dropped.json"))) == 1
    convert(folder / "src", out, runner=InlineRunner(), reporter=reporter)
    assert rows_of_glob(out) == len(content(out)) == 15
    assert f"removed shards/{damaged.name}: its commit was damaged, and its shard was redone" in reporter.lines
    assert not list(out.rglob("*.dropped.json"))
    found = verify_dataset(Store(str(out)))
    assert found.ok and found.unreferenced == []


def test_a_commit_of_an_object_that_was_cut_is_replaced_too(made: Path, tmp_path: Path) -> None:
    """Nobody ran `repair`: the run itself saw by the listing that the shard has to be done again."""
    for name in ("src", "out"):
        shutil.copytree(made / name, tmp_path / name)
    out = tmp_path / "out"
    (cut,) = out.glob("shards/00000001-*")
    gone = duckdb.sql(f"select sample_id from '{cut}'").fetchall()[0][0]
    (tmp_path / "src" / gone).unlink()
    cut.write_bytes(cut.read_bytes()[:-7])
    (out / "manifest.json").unlink()
    convert(tmp_path / "src", out, runner=InlineRunner())
    assert len(shards(out)) == 2 and cut.name not in shards(out)
    assert rows_of_glob(out) == 15


def test_nothing_goes_beside_another_run_and_verify_names_what_stays(folder: Path) -> None:
    out = folder / "out"
    store = Store(str(out))
    (damaged,) = out.glob("shards/00000000-*")
    plan = load_plan(store)
    assert plan is not None
    with Heartbeat(store, plan.plan_id, dict):
        convert(folder / "src", out, runner=InlineRunner(), join=True)
    assert damaged.exists()
    found = verify_dataset(store)
    assert found.ok and found.unreferenced == [f"shards/{damaged.name}"]
    said, _ = call_cli("verify", str(out))
    assert "1 object in shards/ is unreferenced" in said and damaged.name in said and "--min-age 0 --apply" in said
    call_cli("repair", str(out), "--min-age", "0", "--apply")
    assert not damaged.exists() and verify_dataset(store).unreferenced == []


def test_an_object_that_came_out_equal_stays(made: Path, tmp_path: Path) -> None:
    for name in ("src", "out"):
        shutil.copytree(made / name, tmp_path / name, copy_function=shutil.copy2)
    out = tmp_path / "out"
    (shard,) = out.glob("shards/00000000-*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    assert repair_dataset(Store(str(out)), apply=True).tokenize_needed
    convert(made / "src", out, runner=InlineRunner())
    assert shard.read_bytes() == whole and verify_dataset(Store(str(out))).ok


def test_a_record_names_only_data_and_quarantine_objects(tmp_path: Path) -> None:
    """It is read from a store that others can write to: nothing else may be deleted by it."""
    store = Store(str(tmp_path))
    wanted = [ObjectRef(path=path, sha256="0", size=1) for path in ("plan/current.json", "shards/00000000-0123456789ab.parquet", "../x")]
    drop_commit(store, "abc", 0, wanted)
    drop_commit(store, "abc", 0, [ObjectRef(path="quarantine/00000000-0123456789ab.parquet", sha256="0", size=1)])
    found = [reference.path for reference in read_dropped(store, dropped_path("abc", 0))]
    assert found == ["quarantine/00000000-0123456789ab.parquet", "shards/00000000-0123456789ab.parquet"]
    (tmp_path / dropped_path("abc", 0)).write_bytes(b"damaged")
    assert read_dropped(store, dropped_path("abc", 0)) == []
