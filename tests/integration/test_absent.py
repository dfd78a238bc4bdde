"""Inputs that are absent and files that are left out, through whole runs: the account of each input balances wherever it is asked for."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import SilentReporter, call_cli, call_json, content, convert, quarantine_of, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.canonical import seal, unseal
from tokenshards.pipeline.config import RunConfig, SourceConfig
from tokenshards.pipeline.conversion.tokenize import retry_failed
from tokenshards.pipeline.errors import ConfigError, TooManyBadInputsError
from tokenshards.pipeline.job import inputs
from tokenshards.pipeline.ledger.public_copy import publish_dataset
from tokenshards.pipeline.ledger.repair import repair_dataset
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_chain, load_plan
from tokenshards.pipeline.records import LeftOutRecord, SourceRecord
from tokenshards.pipeline.reports.storage_table import dataset_report, status_report
from tokenshards.pipeline.shards.manifest import load_manifest, read_sealed
from tokenshards.pipeline.storage.store import Store

BAD = b"\xff\xd8\xff\xe0 this is no image"
IMAGES, ABSENT, FAILED = 24, (1, 2, 9, 10, 11, 23), (5, 14)
GOOD = IMAGES - len(ABSENT) - len(FAILED)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, IMAGES)
    return [path.read_bytes() for path in sorted(folder.rglob("*.*"))]


def write_table(path: Path, data: list[bytes], failed: tuple[int, ...] = FAILED) -> Path:
    cells = [None if index in ABSENT else BAD if index in failed else image for index, image in enumerate(data)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells, "label": [index % 3 for index in range(len(data))]}), path, row_group_size=4)
    return path


@pytest.fixture
def made(data: list[bytes], tmp_path: Path) -> Path:
    """A complete dataset of a table with rows that are null and rows that are no images."""
    convert(write_table(tmp_path / "src" / "t.parquet", data).parent, tmp_path / "out", shard_rows=8, runner=InlineRunner())
    return tmp_path / "out"


def commits(out: Path) -> dict[Path, dict[str, Any]]:
    return {path: unseal(path.read_bytes(), path.name) for path in sorted(out.glob("commits/*/*.json"))}


def test_every_row_of_a_table_is_a_row_or_quarantined_or_absent(made: Path) -> None:
    store = Store(str(made))
    manifest, plan = load_manifest(store), load_plan(store)
    assert plan is not None and plan.format_version == read_sealed(store, "manifest.json")["format_version"] == "1.1"
    assert len(content(made)) == GOOD and quarantine_of(made) == {f"t.parquet#{index}": "truncated" for index in FAILED}
    names = ("images_planned", "images_committed", "images_quarantined", "images_absent")
    assert [manifest.totals[name] for name in names] == [IMAGES, GOOD, len(FAILED), len(ABSENT)]
    assert "left_out" not in manifest.totals and int(manifest.totals["absent_example"].rpartition("#")[2]) in ABSENT
    for value in commits(made).values():
        assert value["inputs_seen"] == value["rows"] + value["quarantined"] + value.get("absent", 0)
        assert value["format_version"] == ("1.1" if "absent" in value else "1.0")
    assert sum(entry.absent for entry in manifest.shards) == len(ABSENT)
    assert verify_dataset(store).ok and repair_dataset(store, apply=False).steps == []
    report = call_json("status", str(made))
    assert (report["images_planned"], report["images_absent"]) == (IMAGES, len(ABSENT)) and "absent" in report["examples"]
    said, _ = call_cli("status", str(made))
    assert f"{len(ABSENT)}  (such as t.parquet#" in said
    assert f"| absent | {len(ABSENT)} inputs that the source lists without an image |" in (made / "README.md").read_text()


def test_a_dataset_with_nothing_new_is_of_version_1_0(data: list[bytes], tmp_path: Path) -> None:
    for index, image in enumerate(data):
        (tmp_path / "src" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / "a" / f"{index}.img").write_bytes(image)
    pq.write_table(pa.table({"image": data, "label": list(range(IMAGES))}), tmp_path / "t.parquet")
    for number, (source, config) in enumerate(((tmp_path / "src", SourceConfig(all_files=True)), (tmp_path / "t.parquet", SourceConfig()))):
        out = tmp_path / f"out{number}"
        convert(source, out, source=config, shard_rows=8, runner=InlineRunner())
        store = Store(str(out))
        versions = {path.name: unseal(path.read_bytes(), path.name)["format_version"] for path in out.rglob("*.json")}
        assert set(versions.values()) == {"1.0"}, versions
        (plan,) = load_chain(store)
        known = {"all_files", "image_column", "id_column", "label", "no_labels", "meta", "tars_per_shard", "rules"}
        assert set(plan.source["options"]) == known
        assert "absent" not in pq.read_schema(out / str(load_manifest(store).table.path)).names  # type: ignore[union-attr]


def test_max_bad_is_a_share_of_the_inputs_that_are_there(data: list[bytes], tmp_path: Path) -> None:
    source = write_table(tmp_path / "src" / "t.parquet", data).parent
    share = len(FAILED) / (GOOD + len(FAILED))
    with pytest.raises(TooManyBadInputsError, match=rf"2 of {GOOD + len(FAILED)} inputs failed permanently"):
        convert(source, tmp_path / "out", max_bad=share - 0.001, shard_rows=8, runner=InlineRunner())
    assert len(FAILED) / IMAGES < share - 0.001, "of all rows of the table it would be too few"
    convert(source, tmp_path / "out", max_bad=share, shard_rows=8, runner=InlineRunner())


def test_a_table_of_nothing_is_complete(tmp_path: Path, data: list[bytes]) -> None:
    pq.write_table(pa.table({"image": pa.array([data[0], None, None]), "label": [1, 2, 3]}), tmp_path / "a.parquet")
    convert(tmp_path / "a.parquet", tmp_path / "out", max_bad=0.0, runner=InlineRunner())
    assert load_manifest(Store(str(tmp_path / "out"))).totals["images_absent"] == 2
    pq.write_table(pa.table({"image": pa.array([None, None], pa.binary()), "label": [1, 2]}), tmp_path / "b.parquet")
    convert(tmp_path / "b.parquet", tmp_path / "none", max_bad=0.0, tokenizer=str(tmp_path / "out" / "tokenizer"), runner=InlineRunner())
    manifest = load_manifest(Store(str(tmp_path / "none")))
    assert (manifest.totals["images_committed"], manifest.totals["images_absent"], manifest.shards[0].path) == (0, 2, None)
    assert verify_dataset(Store(str(tmp_path / "none"))).ok


def test_rows_of_uris_are_absent_in_the_plan(tmp_path: Path, data: list[bytes]) -> None:
    (tmp_path / "src").mkdir()
    lines = []
    for index, image in enumerate(data):
        (tmp_path / "src" / f"{index}.img").write_bytes(image)
        status = "failed_to_download" if index == 3 else "success"
        lines.append(json.dumps({"path": None if index in ABSENT else f"{index}.img", "label": index % 2, "status": status}))
    (tmp_path / "src" / "t.jsonl").write_text("\n".join(lines) + "\n")
    convert(tmp_path / "src" / "t.jsonl", tmp_path / "out", shard_rows=8, runner=InlineRunner())
    store = Store(str(tmp_path / "out"))
    (plan,) = load_chain(store)
    totals = load_manifest(store).totals
    assert plan.format_version == "1.1" and (totals["images_planned"], totals["images_absent"]) == (IMAGES, len(ABSENT) + 1)
    assert verify_dataset(store).ok and len(content(tmp_path / "out")) == IMAGES - len(ABSENT) - 1
    estimate = call_json("plan", str(tmp_path / "src" / "t.jsonl"), str(tmp_path / "none"), "--size", "16", "--codes", "16")
    assert (estimate["images"], estimate["bad_share"]) == (IMAGES - len(ABSENT) - 1, 0.0)


def test_a_retry_leaves_the_absent_alone(made: Path, data: list[bytes]) -> None:
    write_table(made.parent / "src" / "t.parquet", data, failed=FAILED[:1])
    assert retry_failed(str(made), None, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner()) is not None
    store = Store(str(made))
    first, second = load_chain(store)
    assert (first.format_version, second.format_version, second.images_planned) == ("1.1", "1.1", 2)
    totals = load_manifest(store).totals
    names = ("images_planned", "images_committed", "images_quarantined", "images_absent")
    assert [totals[name] for name in names] == [IMAGES, GOOD + 1, 1, len(ABSENT)]
    assert verify_dataset(store).ok and dataset_report(store).images_planned == IMAGES
    (made / "manifest.json").unlink()
    report = dataset_report(store)
    assert (report.images_planned, report.images_committed, report.images_absent) == (IMAGES, GOOD + 1, len(ABSENT))


def test_a_lost_commit_and_a_lost_manifest_come_back_with_the_same_account(made: Path) -> None:
    before = load_manifest(Store(str(made)))
    path, _ = next((path, value) for path, value in commits(made).items() if "absent" in value)
    path.unlink()
    store = Store(str(made))
    assert {problem.kind for problem in verify_dataset(store).problems} == {"missing"}
    repair_dataset(store, apply=True)
    report = status_report(store)
    assert not report.complete and report.images_planned == IMAGES
    convert(made.parent / "src", made, shard_rows=8, runner=InlineRunner())
    after = load_manifest(store)
    assert after.totals | {"seconds": {}} == before.totals | {"seconds": {}} and verify_dataset(store).ok
    (made / "manifest.json").unlink()
    repair_dataset(store, apply=True)
    assert load_manifest(store).totals == after.totals and verify_dataset(store).ok


@pytest.mark.parametrize("change", [{"absent": 1}, {"inputs_seen": 7}, {"left_out": {"hidden": 1}}])
def test_an_account_that_does_not_balance_is_damage(made: Path, change: dict[str, Any]) -> None:
    path, value = next((path, value) for path, value in commits(made).items() if value.get("absent", 0) > 1)
    path.write_bytes(seal({**value, **change}))
    for name in made.glob("manifest*.json"):
        name.unlink()
    found = verify_dataset(Store(str(made)))
    assert any(problem.kind == "accounts" and problem.object.endswith(path.name) for problem in found.problems)
    assert found.bad_shards


def test_a_public_copy_says_nothing_of_them(made: Path, tmp_path: Path) -> None:
    store, copy = Store(str(made)), Store(str(tmp_path / "copy"))
    publish_dataset(store, copy)
    manifest = load_manifest(copy)
    assert manifest.untaken.absent == 0 and "absent_example" not in manifest.totals and manifest.totals["images_planned"] == GOOD
    assert sum(entry.absent + entry.left_out for entry in manifest.shards) == 0 and verify_dataset(copy).ok
    assert "absent" not in (tmp_path / "copy" / "README.md").read_text()


def test_what_tars_leave_out_is_no_image(data: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    for name, images in (("a", data[:6]), ("b", [*data[6:10], BAD])):
        with tarfile.open(tmp_path / "src" / f"{name}.tar", "w") as archive:
            for index, image in enumerate(images):
                info = tarfile.TarInfo(f"{index}.jpg")
                info.size = len(image)
                archive.addfile(info, io.BytesIO(image))
    read = inputs.read_slice

    def with_left_out(store: Any, row: Any, *others: Any) -> Iterator[SourceRecord]:
        yield from read(store, row, *others)
        yield LeftOutRecord(kind=".json", count=5, example=f"{row.sample_id}#0.json")

    monkeypatch.setattr(inputs, "read_slice", with_left_out)
    convert(tmp_path / "src", tmp_path / "out", runner=InlineRunner())
    store = Store(str(tmp_path / "out"))
    manifest = load_manifest(store)
    totals = manifest.totals
    assert (totals["images_planned"], totals["images_committed"], totals["images_quarantined"]) == (11, 10, 1)
    assert (totals["left_out"], totals["left_out_examples"]) == ({".json": 10}, {".json": "a.tar#0.json"})
    assert [(entry.inputs_seen, entry.left_out) for entry in manifest.shards] == [(11, 5), (10, 5)] and verify_dataset(store).ok
    assert "10 .json  (such as a.tar#0.json)" in call_cli("status", str(tmp_path / "out"))[0]
    assert read_sealed(store, "manifest.json")["format_version"] == "1.1"
    retry_failed(str(tmp_path / "out"), None, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner())
    again = load_manifest(store)
    assert again.generation == 2 and again.totals["left_out"] == {".json": 10} and again.totals["images_planned"] == 11
    assert verify_dataset(store).ok


def test_options_of_the_source_that_differ_from_the_plan_are_refused(made: Path) -> None:
    for config, said in (
        (SourceConfig(label_from="parent"), "--label-from parent .the plan has None."),
        (SourceConfig(tar_key="last-dot"), "--key last-dot .the plan has auto."),
        (SourceConfig(split="train"), "--split train"),
        (SourceConfig(no_labels=True), "--no-labels True .the plan has False."),
    ):
        with pytest.raises(ConfigError, match=said):
            convert(made.parent / "src", made, source=config, runner=InlineRunner())
