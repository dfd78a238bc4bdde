"""planned = committed + quarantined: what a survey counts, and what it does not believe."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.errors import IncompleteError, TransientStorageError
from tokenshards.pipeline.ledger import survey as accounting
from tokenshards.pipeline.ledger.closing import class_table, close_generation
from tokenshards.pipeline.ledger.survey import manifest_histograms, size_problem, survey_plan
from tokenshards.pipeline.planning.plan import Plan, load_plan
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.commit import Commit, ObjectRef
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.storage.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "src", 40, bad=4)
    convert(folder / "src", folder / "out", shard_rows=11, runner=InlineRunner())
    return folder / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def planned(out: Path) -> tuple[Store, Plan]:
    store = Store(str(out))
    plan = load_plan(store)
    assert plan is not None
    return store, plan


def test_a_finished_plan(out: Path) -> None:
    store, plan = planned(out)
    survey = survey_plan(store, plan, plan.spec)
    manifest = load_manifest(store)
    assert survey.balanced and survey.to_do == [] and survey.problems == []
    assert (survey.planned, survey.rows, survey.quarantined, survey.inputs_seen) == (44, 40, 4, 44)
    assert survey.done == manifest.shards and [entry.shard for entry in survey.done] == list(plan.shard_numbers)
    assert survey.bytes_shards == sum(path.stat().st_size for path in out.glob("shards/*"))
    dataset = open_dataset(str(out))
    ids_BLQ = next(dataset.batches(100)).ids_BLQ
    counted = manifest_histograms(manifest)
    assert counted is not None
    for level, counts_V in enumerate(counted):
        assert np.array_equal(counts_V, np.bincount(ids_BLQ[..., level].ravel(), minlength=len(counts_V)))
    assert survey.labels == {label: count for label, count in zip(manifest.classes, manifest.class_counts, strict=True)}
    assert survey.id_count == ids_BLQ.size


def test_only_intact_commits_of_existing_objects_count(out: Path) -> None:
    store, plan = planned(out)
    commits, shards = sorted(out.glob("commits/*/*")), sorted(out.glob("shards/*"))
    commits[0].write_bytes(commits[0].read_bytes()[:-2])
    shards[1].unlink()
    with shards[2].open("ab") as file:
        file.write(b"x")
    (commits[0].parent / "99999999.json").write_bytes(b"a shard that the plan does not have")
    (commits[0].parent / "notes.txt").write_bytes(b"")
    survey = survey_plan(store, plan, plan.spec)
    assert survey.to_do == [0, 1, 2] and not survey.balanced
    assert [(problem.object, problem.kind) for problem in survey.problems] == [
        (commits[0].relative_to(out).as_posix(), "corrupt"),
        (shards[1].relative_to(out).as_posix(), "missing"),
        (shards[2].relative_to(out).as_posix(), "wrong_size"),
    ]
    kept = [entry for entry in load_manifest(store).shards if entry.shard > 2]
    assert survey.rows == sum(entry.rows for entry in kept)
    with pytest.raises(IncompleteError, match="44 inputs are planned, .* 3 shards of"):
        close_generation(store, plan, survey, plan.spec, None)


def test_a_remote_store_gives_the_same_survey(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, plan = planned(out)
    sorted(out.glob("commits/*/*"))[1].write_bytes(b"damaged")
    here = survey_plan(local, plan, plan.spec)
    remote = Store(f"memory://{out.name}-{id(out)}")
    for info in local.list():
        remote.write(info.path, local.read(info.path))
    monkeypatch.setattr(accounting, "READ_AHEAD", 2)
    there = survey_plan(remote, plan, plan.spec)
    assert there.done == here.done and there.to_do == here.to_do == [1]
    assert (there.problems, there.rows, there.labels, there.seconds) == (here.problems, here.rows, here.labels, here.seconds)


def test_an_outage_ends_a_survey_without_the_reads_that_wait(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, plan = planned(out)
    remote = Store(f"memory://{out.name}-{id(out)}")
    for info in local.list():
        remote.write(info.path, local.read(info.path))
    asked: list[int] = []

    def failing(store: Store, plan_id: str, shard: int) -> tuple[Commit, str]:
        asked.append(shard)
        time.sleep(0.05)  # as a read does, while the error of the one before is noticed
        raise TransientStorageError("an outage")

    monkeypatch.setattr(accounting, "READ_THREADS", 1)
    monkeypatch.setattr(accounting, "read_commit", failing)
    with pytest.raises(TransientStorageError):
        survey_plan(remote, plan, plan.spec)
    assert len(asked) < plan.shards


def test_counts_that_do_not_add_up_never_become_a_manifest(out: Path) -> None:
    store, plan = planned(out)
    survey = survey_plan(store, replace(plan, images_planned=45), plan.spec)
    assert survey.to_do == [] and not survey.balanced
    with pytest.raises(IncompleteError, match="45 inputs are planned, 40 committed and 4 quarantined"):
        close_generation(store, plan, survey, plan.spec, None)


def test_tars_are_counted_as_they_are_read(out: Path) -> None:
    store, plan = planned(out)
    tars = replace(plan, images_planned=0, tars_planned=4)
    assert survey_plan(store, tars, plan.spec).balanced
    sorted(out.glob("commits/*/*"))[0].unlink()
    survey = survey_plan(store, tars, plan.spec)
    assert not survey.planned_is_exact and survey.planned == survey.inputs_seen < 44 and not survey.balanced


def test_closing_again_writes_the_same_manifest(out: Path) -> None:
    store, plan = planned(out)
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    close_generation(store, plan, survey_plan(store, plan, plan.spec), plan.spec, None)
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_sizes_by_listing() -> None:
    reference = ObjectRef(path="shards/a", sha256="0", size=5)
    assert size_problem(reference, {"shards/a": 5}) is None
    missing, wrong = size_problem(reference, {}), size_problem(reference, {"shards/a": 4})
    assert missing is not None and missing.kind == "missing"
    assert wrong is not None and (wrong.kind, wrong.detail) == ("wrong_size", "it has 4 bytes, expected 5")


def test_the_class_table_only_grows() -> None:
    assert class_table((), {"b": 1, "a": 2}) == ("a", "b")
    assert class_table(("b", "z"), {"b": 1, "a": 2, "c": 1}) == ("b", "z", "a", "c")
    assert class_table((), {10: 1, 9: 1}) == (9, 10)
