"""What `verify` checks: every object by name, every count, complete or not, all of it or a sample."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from tests.datasets import call_cli, call_json, convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.errors import FormatVersionError, NotFoundError
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_plan, plan_pointer
from tokenshards.pipeline.shards.commit import commit_path, read_commit
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.storage.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "src", 40, bad=4)
    convert(folder / "src", folder / "out", shard_rows=6, runner=InlineRunner())
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


def problems(out: Path | str) -> list[tuple[str, str]]:
    return [(problem.object, problem.kind) for problem in verify_dataset(Store(str(out))).problems]


def rewrite_commit(out: Path, place: int, like: int, **changes: object) -> str:
    """Make the commit of shard `place` a sealed record that says what the commit of `like` says."""
    store = Store(str(out))
    plan = load_plan(store)
    assert plan is not None
    commit, _ = read_commit(store, plan.plan_id, like)
    path = commit_path(plan.plan_id, place)
    store.write(path, replace(commit, **changes).to_bytes())  # type: ignore[arg-type]
    return path


def test_a_whole_dataset(out: Path) -> None:
    store = Store(str(out))
    seen: list[tuple[int, int]] = []
    found = verify_dataset(store, on_shard=lambda done, total: seen.append((done, total)))
    shards = len(load_manifest(store).shards)
    assert found.ok and found.complete and found.problems == []
    assert (found.shards_checked, found.rows_checked) == (shards, 40)
    assert seen == [(done, shards) for done in range(1, shards + 1)]
    assert found.referenced == {
        path.relative_to(out).as_posix() for folder in ("shards", "quarantine") for path in (out / folder).iterdir()
    }
    counts = {"shards_checked": shards, "rows_checked": 40}
    assert call_json("verify", str(out)) == {"ok": True, **counts, "complete": True, "problems": [], "unreferenced": []}


def test_a_sample_and_the_rest_of_a_stopped_check(out: Path) -> None:
    store = Store(str(out))
    assert verify_dataset(store, sample=2).shards_checked == 2
    assert verify_dataset(store, sample=1000).shards_checked == len(load_manifest(store).shards)
    checked = {next(iter(verify_dataset(store, sample=1).referenced)) for _ in range(30)}
    assert len(checked) > 2  # another sample every time
    (out / str(load_manifest(store).shards[1].path)).write_bytes(b"")
    assert not verify_dataset(store, first_shard=1).ok
    rest = verify_dataset(store, first_shard=2)
    assert rest.ok and rest.shards_checked == len(load_manifest(store).shards) - 2


def test_a_store_that_is_no_disk(made: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(made / "out"), "/verified", recursive=True)
    try:
        assert verify_dataset(Store("memory://verified")).ok
        manifest = load_manifest(Store("memory://verified"))
        assert manifest.table is not None
        fs.rm(f"/verified/{manifest.table.path}")
        assert problems("memory://verified") == [(manifest.table.path, "missing")]
        fs.rm(f"/verified/{manifest.name}")
        assert problems("memory://verified") == [(manifest.name, "missing")]
        fs.pipe("/verified/tokenizer/codebook.safetensors", b"")
        assert ("tokenizer/codebook.safetensors", "corrupt") in problems("memory://verified")
    finally:
        fs.rm("/verified", recursive=True)


def test_an_unfinished_dataset(out: Path) -> None:
    (out / "manifest.json").unlink()
    last = sorted(out.glob("commits/*/*"))[-1]
    last.unlink()
    found = verify_dataset(Store(str(out)))
    assert not found.ok and not found.complete and not found.damaged and not found.bad_shards
    assert [(problem.object, problem.kind) for problem in found.problems] == [("manifest.json", "incomplete")]
    assert "tokenize` again" in found.problems[0].detail
    report = call_json("verify", str(out), expect=1)
    assert not report["ok"] and not report["complete"] and report["shards_open"] == 1
    said = call_cli("verify", str(out), expect=1)[0]
    total = report["shards_checked"] + 1
    assert f": 1 problem, {total - 1} of {total} shards exist yet, {report['rows_checked']} rows checked" in said
    assert "tokenshards repair" not in said and "the same `tokenshards tokenize` continues the job" in said
    shutil.rmtree(out / "commits")
    assert f"0 of {total} shards exist yet, 0 rows checked" in call_cli("verify", str(out), expect=1)[0]


def test_a_missing_commit_of_a_finished_dataset(out: Path) -> None:
    commit = sorted(out.glob("commits/*/*"))[3]
    commit.unlink()
    assert problems(out) == [(commit.relative_to(out).as_posix(), "missing")]


def test_a_plan_that_cannot_be_read_does_not_hide_the_shards(out: Path) -> None:
    plan = load_plan(Store(str(out)))
    assert plan is not None
    shard = sorted(out.glob("shards/*"))[2]
    shard.write_bytes(shard.read_bytes()[:-1])
    for path in (plan.path, plan.copy_path):
        (out / path).write_bytes(b"{}")
    expected = {(plan.path, "corrupt"), (plan.copy_path, "corrupt"), (shard.relative_to(out).as_posix(), "wrong_size")}
    assert set(problems(out)) == expected
    (out / "manifest.json").unlink()
    assert set(problems(out)) == {*expected, ("manifest.json", "incomplete")} - {(shard.relative_to(out).as_posix(), "wrong_size")}


def test_current_json_that_names_another_plan(out: Path) -> None:
    store = Store(str(out))
    plan = load_plan(store)
    assert plan is not None
    store.write("plan/current.json", plan_pointer(replace(plan, card={"source": "elsewhere"})))
    assert problems(out) == [("plan/current.json", "corrupt")]


def test_sealed_commits_that_do_not_add_up(out: Path) -> None:
    """Nothing is flipped here: records that are intact and wrong."""
    path = rewrite_commit(out, 1, like=1, attempt=7)
    assert problems(out) == []  # a driver that joined did the same work once more: any winner is right
    rewrite_commit(out, 1, like=2, shard=1)
    assert (path, "corrupt") in problems(out)  # not what the manifest names
    (out / "manifest.json").unlink()
    path = rewrite_commit(out, 1, like=2, shard=1)  # the rows of shard 2 a second time, in the place of those of shard 1
    assert set(problems(out)) == {(path, "accounts"), ("shards/", "duplicate_ids"), ("manifest.json", "incomplete")}
    rewrite_commit(out, 1, like=2)  # says of itself that it belongs to shard 2
    assert set(problems(out)) == {(path, "corrupt"), ("manifest.json", "incomplete")}
    data = sorted(out.glob("shards/00000002-*"))[0].relative_to(out).as_posix()
    rewrite_commit(out, 2, like=2, rows=1)
    assert (data, "rows") in problems(out)


def test_nothing_to_verify(tmp_path: Path, out: Path) -> None:
    with pytest.raises(NotFoundError, match="neither a plan nor a manifest"):
        verify_dataset(Store(str(tmp_path / "empty")))
    shutil.rmtree(out / "commits")
    (out / "manifest.json").unlink()
    (out / "plan" / "current.json").unlink()
    with pytest.raises(NotFoundError, match="neither a plan nor a manifest"):  # what a run leaves that died while it planned
        verify_dataset(Store(str(out)))


def test_a_newer_major_version_is_no_damage(out: Path) -> None:
    from tokenshards.pipeline.canonical import seal, unseal

    value = unseal((out / "manifest.json").read_bytes(), "manifest.json")
    (out / "manifest.json").write_bytes(seal({**value, "format_version": "2.0"}))
    with pytest.raises(FormatVersionError, match=r"format 2\.0; this version reads up to 1\.x"):
        verify_dataset(Store(str(out)))
