"""What `repair` does, what it refuses and why, and that it deletes only what nothing references."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.datasets import SilentReporter, call_cli, content, convert, quarantine_of, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.conversion.tokenize import retry_failed
from tokenshards.pipeline.errors import LiveRunError, PlanError
from tokenshards.pipeline.ledger.heartbeat import Heartbeat
from tokenshards.pipeline.ledger.repair import Repair, repair_dataset
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_chain
from tokenshards.pipeline.shards.commit import ObjectRef, read_commit
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.storage.store import TEMPORARY_PREFIX, Store

OLD = time.time() - 10 * 86_400


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`src` and its dataset `one`, and `three`, a copy of it with two more generations."""
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "src", 24, bad=4)
    convert(folder / "src", folder / "one", shard_rows=8, runner=InlineRunner())
    shutil.copytree(folder / "src", folder / "original")
    shutil.copytree(folder / "one", folder / "three")
    good = next((folder / "src").rglob("*.png")).read_bytes()
    for path in sorted((folder / "src").rglob("bad_*"))[:2]:
        path.write_bytes(good)
        assert retry_failed(str(folder / "three"), None, RunConfig(workers=1), {}, SilentReporter(), InlineRunner()) is not None
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to damage; plans name the copied-from `src` as their source."""
    for name in ("one", "three"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copytree(made / "src", tmp_path / "src")
    return tmp_path


def apply(out: Path, **options: object) -> Repair:
    store = Store(str(out))
    dry = repair_dataset(store, apply=False, **options)  # type: ignore[arg-type]
    done = repair_dataset(store, apply=True, **options)  # type: ignore[arg-type]
    assert dry.steps == done.steps and dry.tokenize_needed == done.tokenize_needed
    return done


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def the(out: Path, pattern: str) -> Path:
    return sorted(out.glob(pattern))[0]


def ok(out: Path) -> bool:
    return verify_dataset(Store(str(out))).ok


def part_of_generation(out: Path, generation: int) -> Path:
    return out / load_chain(Store(str(out)))[generation - 1].parts[0].path


def test_nothing_to_do(folder: Path) -> None:
    for name in ("one", "three"):
        assert apply(folder / name) == Repair(applied=True)


def test_every_object_of_every_generation_is_verified_and_mended(made: Path, tmp_path: Path) -> None:
    whole = made / "three"
    assert load_manifest(Store(str(whole))).generation == 3
    # A file was mended before each retry, so the source is no longer what the older generations saw.
    older_parts = {part.path for plan in load_chain(Store(str(whole)))[:2] for part in plan.parts}
    names = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
    state = [name for name in names if not name.startswith("runs/") and name != "README.md"]  # heartbeats and the card decide nothing
    for number, name in enumerate(state):
        out = tmp_path / str(number)
        shutil.copytree(whole, out)
        spoil(out / name)
        found = verify_dataset(Store(str(out)))
        assert [problem.object for problem in found.problems] == [name]
        repair = apply(out)
        if name in older_parts:
            assert ["the source has changed since the plan" in step.detail for step in repair.refused] == [True]
            continue
        assert repair.steps and not repair.refused, name
        if repair.tokenize_needed:
            convert(made / "src", out, runner=InlineRunner())
        assert ok(out), name
        assert content(out) == content(whole) and quarantine_of(out) == quarantine_of(whole)


def test_orphans_go_only_when_old_and_unreferenced(folder: Path) -> None:
    for out in (folder / "one", folder / "three"):
        kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        strangers = [out / "notes.txt", out / "shards.txt", out / "tokenizer" / "more.json", out / "plan" / "notes.txt"]
        orphans = [
            *(out / "shards" / name for name in ("00000000-000000000000.parquet", f"{TEMPORARY_PREFIX}1")),
            out / "quarantine" / "00000099-000000000000.parquet",
            *(out / name for name in ("manifest-000000000000.json", "shards-000000000000.parquet", f"{TEMPORARY_PREFIX}2")),
            out / "plan" / "abc" / "part-00000.parquet",
        ]
        for path in (*strangers, *orphans):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
        assert apply(out).steps == []  # all of it is young
        for path in (*kept, *strangers, *orphans):
            os.utime(path, (OLD, OLD))
        young = out / "shards" / "00000001-000000000000.parquet"
        young.write_bytes(b"x")
        repair = apply(out)
        assert {(step.action, out / step.object) for step in repair.steps} == {("delete", path) for path in orphans}
        assert not any(path.exists() for path in orphans) and young.exists() and all(path.exists() for path in strangers)
        assert {path: path.read_bytes() for path in kept} == kept
        assert ok(out)


def test_foreign_files_are_named_and_never_deleted(folder: Path) -> None:
    out = folder / "one"
    names = ("shards/notes.parquet", "shards/00000000-XYZ.parquet", "shards/mine/a.parquet", "quarantine/why.txt", "shards-of-mine.parquet")
    for name in (*names, "plan/abc/notes.txt", "manifest-of-mine.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"x")
        os.utime(out / name, (OLD, OLD))
    repair = apply(out)
    assert repair.steps == [] and repair.foreign == sorted(names[:4])
    assert all((out / name).exists() for name in names)
    said, _ = call_cli("repair", str(out), "--apply")
    assert "shards/notes.parquet is not an object of tokenshards, so it is kept" in said


def test_no_orphan_is_deleted_beside_damage_or_of_a_foreign_plan(folder: Path) -> None:
    out = folder / "one"
    store = Store(str(out))
    foreign = ObjectRef(path="shards/00000007-abcabcabcabc.parquet", sha256="0", size=1)
    commit, _ = read_commit(store, load_chain(store)[0].plan_id, 1)
    store.write("commits/abc/00000007.json", replace(commit, data=foreign).to_bytes())
    store.write(foreign.path, b"x")
    referenced = out / verify_dataset(Store(str(out))).referenced.pop()
    orphan = out / "shards" / "00000000-000000000000.parquet"
    orphan.write_bytes(b"x")
    for path in out.rglob("*"):
        if path.is_file():
            os.utime(path, (OLD, OLD))
    whole = referenced.read_bytes()
    spoil(referenced)
    assert [step.action for step in repair_dataset(Store(str(out)), apply=False).steps] == ["drop", "drop"]
    referenced.write_bytes(whole)
    assert [step.object for step in apply(out).steps] == ["shards/00000000-000000000000.parquet"]
    assert (out / foreign.path).exists() and ok(out)


def test_an_unfinished_dataset_keeps_what_its_commits_name(made: Path, folder: Path) -> None:
    out = folder / "one"
    (out / "manifest.json").unlink()
    the(out, "commits/*/00000002.json").unlink()
    (old_manifest,) = out.glob("manifest-*")
    for path in out.rglob("*"):
        if path.is_file():
            os.utime(path, (OLD, OLD))
    repair = apply(out)
    assert repair.tokenize_needed
    assert {Path(step.object).parts[0] for step in repair.steps} >= {"shards", old_manifest.name}
    convert(made / "original", out, runner=InlineRunner())
    assert len(content(out)) + len(quarantine_of(out)) == 28


def test_repair_refuses_beside_a_live_run(folder: Path) -> None:
    store = Store(str(folder / "one"))
    spoil(the(folder / "one", "shards/*"))
    with Heartbeat(store, load_chain(store)[0].plan_id, dict):
        with pytest.raises(LiveRunError, match="cannot repair, another run is at work"):
            repair_dataset(store, apply=True)
        assert [step.action for step in repair_dataset(store, apply=False).steps] == ["drop", "drop"]
    assert the(folder / "one", "commits/*/00000000.json").exists()


def test_a_plan_part_comes_from_the_source_or_not_at_all(made: Path, folder: Path) -> None:
    out = folder / "one"
    part = part_of_generation(out, 1)
    whole = part.read_bytes()
    part.write_bytes(whole[:-9])
    (refused,) = apply(out).refused
    assert "the source has changed since the plan" in refused.detail  # two bad images are good now
    (refused,) = apply(out, source_url=str(folder / "nowhere")).refused
    assert "cannot be listed again" in refused.detail and "--source" in refused.detail
    moved = folder / "moved"
    shutil.copytree(made / "original", moved)  # with the times of its files
    assert [step.action for step in apply(out, source_url=str(moved)).steps] == ["rebuild"]
    assert part.read_bytes() == whole and ok(out)


def test_a_shard_is_not_dropped_when_it_could_not_be_done_again(made: Path, folder: Path) -> None:
    out = folder / "one"
    shard = the(out, "shards/*")
    spoil(shard)
    part_of_generation(out, 1).unlink()
    repair = apply(out)
    assert [step.action for step in repair.steps] == ["refuse", "refuse"] and not repair.tokenize_needed
    assert "plan/" in repair.steps[1].detail and shard.relative_to(out).as_posix() in repair.steps[1].detail
    assert content_is_readable(out, besides=shard)


def content_is_readable(out: Path, besides: Path) -> bool:
    """True where every other shard is still reachable through the manifest."""
    manifest = load_manifest(Store(str(out)))
    return all((out / str(entry.path)).exists() for entry in manifest.shards) and besides.exists()


def test_both_copies_of_a_plan_lost(folder: Path) -> None:
    out = folder / "three"
    plan = load_chain(Store(str(out)))[1]
    (out / plan.path).unlink()
    spoil(out / plan.copy_path)
    spoil(the(out, "shards/*"))
    spoil(out / "manifest.json")
    repair = apply(out)
    assert {step.action for step in repair.steps} == {"refuse"}
    assert {plan.path, plan.copy_path, "manifest.json"} <= {step.object for step in repair.steps}
    assert not repair.tokenize_needed


def test_a_codebook_without_a_copy_is_not_fitted_again(made: Path, folder: Path) -> None:
    out = folder / "one"
    the(out, "shards/00000000-*").unlink()  # the one that carries the codebook
    spoil(the(out, "shards/00000001-*"))
    spoil(out / "tokenizer" / "codebook.safetensors")
    repair = apply(out)
    assert {step.action for step in repair.steps} == {"refuse"}
    assert "a new fit would change the meaning" in repair.steps[0].detail
    assert "codebook.safetensors is lost" in repair.steps[1].detail
    shutil.copy(made / "one" / "tokenizer" / "codebook.safetensors", out / "tokenizer")
    assert apply(out).tokenize_needed
    convert(made / "original", out, runner=InlineRunner())
    assert ok(out)


def test_an_old_shard_whose_source_changed_is_not_dropped(tmp_path: Path) -> None:
    """Done again it would be quarantined as changed, and no later generation would try it again."""
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 12, bad=1)
    convert(src, out, shard_rows=20, runner=InlineRunner())
    good = next(src.rglob("*.png")).read_bytes()
    next(src.rglob("bad_*")).write_bytes(good)
    assert retry_failed(str(out), None, RunConfig(workers=1), {}, SilentReporter(), InlineRunner()) is not None
    before = content(out)
    spoil(the(out, "shards/00000000-*"))
    shutil.copytree(out, tmp_path / "again")
    assert apply(out).tokenize_needed  # what changed was tried again by the next generation
    convert(src, out, runner=InlineRunner())
    assert content(out) == before
    changed = sorted(src.rglob("img_*"))[0]
    changed.write_bytes(good)
    (refused,) = apply(tmp_path / "again").refused
    assert changed.name in refused.detail and "rows would be lost" in refused.detail


def test_a_run_that_died_between_manifest_and_pointer(folder: Path) -> None:
    out = folder / "three"
    (out / "manifest.json").unlink()
    found = verify_dataset(Store(str(out)))
    assert [problem.kind for problem in found.problems] == ["incomplete"]
    assert [(step.action, step.object) for step in apply(out).steps] == [("rebuild", "manifest.json")]
    assert ok(out)


def test_a_source_given_by_a_relative_path_is_found_from_anywhere(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    convert("original", tmp_path / "out", shard_rows=8, runner=InlineRunner())
    monkeypatch.chdir(tmp_path)
    spoil(part_of_generation(tmp_path / "out", 1))
    assert [step.action for step in apply(tmp_path / "out").steps] == ["rebuild"]
    assert ok(tmp_path / "out")


def test_work_without_a_plan_is_never_planned_anew(made: Path, folder: Path) -> None:
    """A new plan would fit a new tokenizer over the old one."""
    out = folder / "one"
    (out / "plan" / "current.json").unlink()
    codebook = (out / "tokenizer" / "codebook.safetensors").read_bytes()
    with pytest.raises(PlanError, match="current.json is missing, but the dataset has commits. Run `tokenshards repair"):
        convert(made / "original", out, runner=InlineRunner())
    assert (out / "tokenizer" / "codebook.safetensors").read_bytes() == codebook
