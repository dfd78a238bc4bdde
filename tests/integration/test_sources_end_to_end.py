"""One command, any input: folders, tars and tables give the same rows with labels, on local disk and on other stores."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import SilentReporter, content, convert, quarantine_of, start_cli, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import ConfigError, LiveRunError, SourceError, TokenizerError
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.ledger.heartbeat import Heartbeat
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_plan
from tokenshards.pipeline.planning.planner import publish_plan_json
from tokenshards.pipeline.reports.storage_table import dataset_report
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig

FIT = FitConfig(size=16, codes=16, iterations=2)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "src"
    write_images(folder, 40)
    return folder


@pytest.fixture(scope="module")
def reference(images: Path) -> Path:
    convert(images, images.parent / "reference", runner=InlineRunner())
    return images.parent / "reference"


def files_of(images: Path) -> list[tuple[str, bytes, str]]:
    """Return (name, bytes, class) of every image."""
    return [(path.name, path.read_bytes(), path.parent.name) for path in sorted(images.glob("*/*"), key=lambda path: path.name)]


def by_image(out: Path | str) -> dict[str, tuple[Any, bytes]]:
    """Return the content with the stem of the image as the key."""
    return {sample_id.rpartition("/")[2].rpartition("#")[2].partition(".")[0]: value for sample_id, value in content(out).items()}


def write_tars(images: Path, folder: Path, label_as: str) -> None:
    folder.mkdir()
    files = files_of(images)
    for number in range(2):
        with tarfile.open(folder / f"train-{number:03d}.tar", "w") as archive:
            for name, data, label in files[number::2]:
                stem, _, extension = name.partition(".")
                sidecar = {"cls": label[-1], "json": json.dumps({"label": label, "extra": 7}), "txt": label}[label_as]
                for member, body in ((f"{stem}.{extension}", data), (f"{stem}.{label_as}", sidecar.encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(body)
                    archive.addfile(info, io.BytesIO(body))


@pytest.mark.parametrize(("label_as", "expected"), [("cls", int), ("json", str), ("txt", str)])
def test_tars_give_the_rows_of_the_folder(images: Path, reference: Path, tmp_path: Path, label_as: str, expected: type) -> None:
    write_tars(images, tmp_path / "tars", label_as)
    pattern = f"{tmp_path}/tars/train-{{000..001}}.tar"
    source = {"json": SourceConfig(meta=("extra",)), "txt": SourceConfig(label="txt"), "cls": SourceConfig()}[label_as]
    outcome = convert(pattern, tmp_path / "out", tokenizer=f"{reference}/tokenizer", source=source, runner=InlineRunner())
    assert outcome.manifest.totals["images_planned"] == 40
    rows, wanted = by_image(tmp_path / "out"), by_image(reference)
    assert {key: ids for key, (_, ids) in rows.items()} == {key: ids for key, (_, ids) in wanted.items()}
    for key, (label, _) in rows.items():
        assert isinstance(label, expected)
        assert str(label) == (wanted[key][0] if expected is str else wanted[key][0][-1])
    dataset = open_dataset(str(tmp_path / "out"))
    assert [entry.rows for entry in dataset.shards] == [20, 20]
    if label_as == "json":
        assert next(dataset.batches(40, columns=["meta.extra"])).table["meta.extra"].to_pylist() == [7] * 40
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


def test_a_plan_made_before_captions_were_no_labels_keeps_its_rule(images: Path, reference: Path, tmp_path: Path) -> None:
    write_tars(images, tmp_path / "tars", "txt")
    out, store = tmp_path / "out", Store(str(tmp_path / "out"))
    with pytest.raises(InterruptedError):
        convert(tmp_path / "tars", out, tokenizer=f"{reference}/tokenizer", source=SourceConfig(rules=1), runner=StoppedRunner())
    plan = load_plan(store)
    assert plan is not None and plan.source["options"]["rules"] == 1
    options = {name: value for name, value in plan.source["options"].items() if name not in ("rules", "no_labels")}  # as old code wrote it
    publish_plan_json(store, replace(plan, source={**plan.source, "options": {**options, "of_a_later_version": 1}}))
    outcome = convert(tmp_path / "tars", out, runner=InlineRunner())
    assert outcome.manifest.totals["images_committed"] == 40 and outcome.manifest.totals["images_quarantined"] == 0
    assert by_image(out) == by_image(reference)
    assert verify_dataset(store).ok
    for rules, classes in ((2, ()), (3, outcome.manifest.classes)):  # by rules 3 a .txt that recurs is a class again
        source = SourceConfig(rules=rules)
        new = convert(tmp_path / "tars", tmp_path / str(rules), tokenizer=f"{reference}/tokenizer", runner=InlineRunner(), source=source)
        assert new.manifest.classes == classes


class StoppedRunner(InlineRunner):
    """Stops after its first shard, as a run that is killed."""

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        super().run(job, shards[:1], listener)
        raise InterruptedError


def test_a_plan_without_labels_is_not_continued_with_some(images: Path, reference: Path, tmp_path: Path) -> None:
    tokenizer = f"{reference}/tokenizer"
    convert(images, tmp_path / "out", tokenizer=tokenizer, source=SourceConfig(no_labels=True), runner=InlineRunner())
    assert {label for label, _ in content(tmp_path / "out").values()} == {None}
    with pytest.raises(ConfigError, match=r"--no-labels True \(the plan has False\)"):
        convert(images, reference, source=SourceConfig(no_labels=True), runner=InlineRunner())


@pytest.mark.parametrize("kind", ["bytes", "uri.parquet", "uri.csv", "uri.jsonl"])
def test_tables_give_the_rows_of_the_folder(images: Path, reference: Path, tmp_path: Path, kind: str) -> None:
    files = files_of(images)
    ids = [name.partition(".")[0] for name, _, _ in files]
    labels = [label for _, _, label in files]
    uris = [f"{images}/{label}/{name}" for name, _, label in files]
    table = tmp_path / f"table.{kind.rpartition('.')[2] if '.' in kind else 'parquet'}"
    if kind == "bytes":
        pq.write_table(pa.table({"image": [data for _, data, _ in files], "label": labels, "key": ids}), table, row_group_size=15)
    elif kind == "uri.parquet":
        pq.write_table(pa.table({"url": uris, "label": labels, "key": ids}), table)
    elif kind == "uri.csv":
        table.write_text("url,label,key\n" + "".join(f"{uri},{label},{key}\n" for uri, label, key in zip(uris, labels, ids, strict=True)))
    else:
        rows = (json.dumps({"url": uri, "label": label, "key": key}) for uri, label, key in zip(uris, labels, ids, strict=True))
        table.write_text("\n".join(rows) + "\n")
    convert(table, tmp_path / "out", tokenizer=f"{reference}/tokenizer", source=SourceConfig(id_column="key"), runner=InlineRunner())
    assert content(tmp_path / "out") == by_image(reference)
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


def test_duplicate_ids_of_a_table_meet_and_one_is_quarantined(images: Path, reference: Path, tmp_path: Path) -> None:
    files = files_of(images)
    rows = [f"{images}/{label}/{name},{index // 2}" for index, (name, _, label) in enumerate(files)]
    (tmp_path / "table.csv").write_text("url,key\n" + "\n".join(rows) + "\n")
    source = SourceConfig(id_column="key")
    convert(
        tmp_path / "table.csv", tmp_path / "out", tokenizer=f"{reference}/tokenizer", source=source, runner=InlineRunner(), shard_rows=7
    )
    assert len(content(tmp_path / "out")) == 20
    assert set(quarantine_of(tmp_path / "out").values()) == {"duplicate_id"}
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


def test_memory_store_to_memory_store(images: Path, reference: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name, data, label in files_of(images):
        memory.pipe_file(f"/bucket/src/{label}/{name}", data)
    runner = InlineRunner()
    convert("memory://bucket/src", "memory://bucket/out", runner=runner, shard_rows=10)
    assert len(runner.shards) == 4
    assert content("memory://bucket/out") == content(reference)  # the tokenizer is fitted anew there, to the same codes
    assert verify_dataset(Store("memory://bucket/out")).ok
    again = convert("memory://bucket/src", "memory://bucket/out", runner=runner)
    assert again.already_complete and len(runner.shards) == 4
    assert dataset_report(Store("memory://bucket/out")).to_json()["complete"]
    memory.store.clear()


def test_a_copied_dataset_stays_valid(reference: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(reference, tmp_path / "elsewhere")
    assert verify_dataset(Store(str(tmp_path / "elsewhere"))).ok
    assert content(tmp_path / "elsewhere") == content(reference)


def test_the_listing_order_and_the_machine_do_not_matter(images: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Store.list

    def backwards(self: Store, prefix: str = "", *, temporary: bool = False) -> Any:
        return iter(list(listing(self, prefix, temporary=temporary))[::-1])

    monkeypatch.setattr(Store, "list", backwards)
    convert(images, images.parent / "backwards", runner=InlineRunner())
    first, second = load_plan(Store(str(reference))), load_plan(Store(str(images.parent / "backwards")))
    assert first is not None and second is not None and first.plan_id == second.plan_id
    same = [path.name for path in sorted((reference / "shards").iterdir())]
    assert [path.name for path in sorted((images.parent / "backwards" / "shards").iterdir())] == same


def test_a_validation_split_takes_tokenizer_and_classes_of_training(images: Path, reference: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "val", 9, seed=5)
    for path in (tmp_path / "val" / "class_0").iterdir():
        path.unlink()  # a split that lacks a class keeps the class indices of the training set
    (tmp_path / "val" / "class_9").mkdir()
    (tmp_path / "val" / "class_1" / "img_0001.png").rename(tmp_path / "val" / "class_9" / "new.png")
    convert(tmp_path / "val", tmp_path / "out", tokenizer=str(reference), runner=InlineRunner())
    train, val = open_dataset(str(reference)), open_dataset(str(tmp_path / "out"))
    assert val.spec.fingerprint == train.spec.fingerprint
    assert val.classes == (*train.classes, "class_9")
    assert {label for label, _ in content(tmp_path / "out").values()} == {"class_1", "class_2", "class_9"}


def test_flat_folders_have_no_labels_and_say_so(images: Path, tmp_path: Path) -> None:
    reporter = SilentReporter()
    convert(images / "class_0", tmp_path / "out", reporter=reporter, runner=InlineRunner())
    assert any("no labels" in line for line in reporter.lines)
    assert open_dataset(str(tmp_path / "out")).classes == ()


def test_a_changed_input_is_quarantined_not_mixed_in(images: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(images, tmp_path / "src")

    class ChangesOne(InlineRunner):
        def run(self, *arguments: Any) -> dict[int, str]:
            victim = tmp_path / "src" / "class_0" / "img_0000.jpg"
            victim.write_bytes(victim.read_bytes() + b"more")
            (tmp_path / "src" / "class_1" / "img_0001.png").unlink()
            return super().run(*arguments)

    convert(tmp_path / "src", tmp_path / "out", runner=ChangesOne())
    assert quarantine_of(tmp_path / "out") == {"class_0/img_0000.jpg": "changed_since_plan", "class_1/img_0001.png": "missing"}


def test_other_options_than_the_plan_are_refused(images: Path, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--codec publish .the plan has default."):
        convert(images, reference, codec="publish")
    convert(images / "class_1", tmp_path / "other", runner=InlineRunner(), fit=FitConfig(size=16, codes=8))
    with pytest.raises(ConfigError, match="--tokenizer with fingerprint"):
        convert(images, reference, tokenizer=str(tmp_path / "other"))
    with pytest.raises(TokenizerError, match=r"looked for tokenizer\.json"):
        convert(images, tmp_path / "new", tokenizer=str(images))


def test_a_second_driver_stops_unless_it_joins(images: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    convert(images, tmp_path / "out", runner=InlineRunner(), shard_rows=10)
    (tmp_path / "out" / "manifest.json").unlink()
    for commit in sorted((tmp_path / "out" / "commits").rglob("*.json"))[:2]:
        commit.unlink()
    plan = load_plan(store)
    assert plan is not None
    with Heartbeat(store, plan.plan_id, lambda: {"images_seen": 5}):
        with pytest.raises(LiveRunError, match=r"--join"):
            convert(images, tmp_path / "out", runner=InlineRunner())
        runner = InlineRunner()
        convert(images, tmp_path / "out", runner=runner, join=True)
        assert len(runner.shards) == 2
    assert len(content(tmp_path / "out")) == 40


def test_a_driver_that_joined_leaves_committed_shards_alone(images: Path, tmp_path: Path) -> None:
    convert(images, tmp_path / "out", runner=InlineRunner(), shard_rows=10)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").iterdir()}
    (tmp_path / "out" / "manifest.json").unlink()

    class SlowToLook(InlineRunner):
        def run(self, job: Any, shards: Any, listener: Any) -> dict[int, str]:
            return super().run(job, [0, 1, 2, 3], listener)  # its survey was taken before the other driver's commits

    commit = next((tmp_path / "out" / "commits").rglob("00000000.json"))
    body = commit.read_bytes()
    commit.unlink()

    class CommitsMeanwhile(SlowToLook):
        def run(self, job: Any, shards: Any, listener: Any) -> dict[int, str]:
            commit.write_bytes(body)
            return super().run(job, shards, listener)

    convert(images, tmp_path / "out", runner=CommitsMeanwhile(), join=True)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").iterdir()} == before


def test_the_last_batch_and_a_bad_neighbour_do_not_change_ids(images: Path, reference: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(images, tmp_path / "src")
    for number in range(7):  # seven more rows, all bad, shift every other row to another slot of its batch
        (tmp_path / "src" / "class_0" / f"bad_{number}.png").write_bytes(b"no image")
    convert(tmp_path / "src", tmp_path / "out", tokenizer=f"{reference}/tokenizer", runner=InlineRunner())
    assert content(tmp_path / "out") == content(reference)


def test_a_place_without_any_planned_input_is_refused(images: Path, reference: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "others", 3, classes=0)
    for source in (tmp_path / "others", tmp_path / "not_mounted"):
        with pytest.raises(SourceError, match="none of 16 planned inputs exists there"):
            convert(source, reference, runner=InlineRunner())
    images.rename(tmp_path / "moved")
    try:
        assert convert(tmp_path / "moved", reference, runner=InlineRunner()).already_complete
    finally:
        (tmp_path / "moved").rename(images)


def test_labels_take_the_type_of_the_class_table(tmp_path: Path) -> None:
    for name in ("0", "1"):
        write_images(tmp_path / "folders" / name, 4, classes=0)
    files = sorted(str(path) for path in (tmp_path / "folders").rglob("*.*"))
    pq.write_table(pa.table({"path": files, "label": [index % 2 for index in range(8)]}), tmp_path / "table.parquet")
    convert(tmp_path / "folders", tmp_path / "strings", runner=InlineRunner())
    convert(tmp_path / "table.parquet", tmp_path / "as_strings", tokenizer=str(tmp_path / "strings"), runner=InlineRunner())
    assert {label for label, _ in content(tmp_path / "as_strings").values()} == {"0", "1"}
    convert(tmp_path / "table.parquet", tmp_path / "integers", runner=InlineRunner())
    convert(tmp_path / "folders", tmp_path / "as_integers", tokenizer=str(tmp_path / "integers"), runner=InlineRunner())
    assert open_dataset(str(tmp_path / "as_integers")).classes == (0, 1)
    write_images(tmp_path / "named", 6)
    with pytest.raises(ConfigError, match="class table of integers"):
        convert(tmp_path / "named", tmp_path / "refused", tokenizer=str(tmp_path / "integers"), runner=InlineRunner())


def test_two_drivers_with_other_options_at_once(images: Path, tmp_path: Path) -> None:
    arguments = ["tokenize", str(images), str(tmp_path / "out"), "--workers", "1", "-q", "--size"]
    drivers = [start_cli(*arguments, size) for size in ("16", "32")]
    for driver in drivers:
        driver.communicate(timeout=60)
    codes = sorted(driver.returncode for driver in drivers)
    assert codes[0] == 0 and codes[1] in (1, 4), "one does it; the other meets a live run, or a plan with other options"
    assert verify_dataset(Store(str(tmp_path / "out"))).ok
