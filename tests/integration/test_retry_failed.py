"""`retry-failed`: what was quarantined is tried again as a new generation; nothing is lost, doubled or rewritten."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.datasets import SilentReporter, call_cli, call_json, content, convert, quarantine_of, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import RunConfig, SourceConfig
from tokenshards.pipeline.conversion import tokenize as conversion
from tokenshards.pipeline.conversion.tokenize import TokenizeRequest, finish_chain, retry_failed
from tokenshards.pipeline.errors import IncompleteError, LiveRunError, MissingObjectError
from tokenshards.pipeline.ledger import heartbeat
from tokenshards.pipeline.ledger.heartbeat import Heartbeat, refuse_beside_live_run
from tokenshards.pipeline.ledger.repair import repair_dataset
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_chain, load_plan
from tokenshards.pipeline.planning.retry_plan import plan_retry
from tokenshards.pipeline.reports.storage_table import dataset_report
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.sources import source_root
from tokenshards.pipeline.storage.store import Store

BAD = b"\xff\xd8\xff\xe0 this is no image"


def image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def tar(path: Path, images: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for index, (key, data) in enumerate(images.items()):
            for name, content in ((f"{key}.png", data), (f"{key}.cls", str(index % 3).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def table(path: Path, images: list[bytes], row_group_size: int = 8, **columns: Any) -> Path:
    pq.write_table(pa.table({"image": images, "label": list(range(len(images))), **columns}), path, row_group_size=row_group_size)
    return path


def images(good: int, **others: bytes) -> dict[str, bytes]:
    return {**{f"k{n:02d}": image(n) for n in range(good)}, **others}


def tokenize(src: Path | str, out: Path, **changes: Any) -> None:
    convert(src, out, runner=InlineRunner(), **{"shard_rows": 16, **changes})


def retry(out: Path, source: str | None = None) -> bool:
    """Retry in this process; check what must hold after every retry; return whether there was anything to do."""
    older = {path: path.read_bytes() for folder in ("shards", "quarantine", "commits") for path in (out / folder).rglob("*.*")}
    before = load_manifest(Store(str(out)))
    outcome = retry_failed(str(out), source, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner())
    assert {path: path.read_bytes() for path in older} == older
    if outcome is not None:
        assert outcome.manifest.generation == before.generation + 1
        assert outcome.manifest.parent == before.name
        assert outcome.manifest.shards[: len(before.shards)] == before.shards
        assert outcome.manifest.classes[: len(before.classes)] == before.classes
    check_totals(out)
    return outcome is not None


def check_totals(out: Path) -> None:
    found = verify_dataset(Store(str(out)))
    assert found.ok, found.problems
    report = dataset_report(Store(str(out)))
    rows, quarantined = content(out), quarantine_of(out)
    assert report.complete and report.images_committed == len(rows) == found.rows_checked
    assert report.images_quarantined == len(quarantined)
    assert report.images_planned == len(rows) + len(quarantined)
    assert report.shards_committed == report.shards_planned == found.shards_checked
    manifest = load_manifest(Store(str(out)))
    assert sum(manifest.class_counts) in (0, len(rows))
    assert manifest.totals["bytes_shards"] == sum(entry.size for entry in manifest.shards)


def ids(out: Path) -> set[str]:
    return set(content(out))


def test_files_fixed_still_bad_changed_and_missing(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 30, bad=4)
    tokenize(src, out)
    before = content(out)
    bad = sorted(src.rglob("bad_*"))
    assert len(quarantine_of(out)) == 4 and len(before) == 30
    bad[0].write_bytes(image(100))
    bad[1].write_bytes(BAD + b" still")
    bad[2].unlink()
    assert retry(out)
    names = [path.relative_to(src).as_posix() for path in bad]
    assert quarantine_of(out) == {names[1]: "truncated", names[2]: "missing", names[3]: "truncated"}
    after = content(out)
    assert after.keys() - before.keys() == {names[0]}
    assert {key: after[key] for key in before} == before
    assert after[names[0]][0] == names[0].partition("/")[0]
    bad[1].write_bytes(image(101))
    bad[2].write_bytes(image(102))
    assert retry(out)  # generation 3
    assert quarantine_of(out) == {names[3]: "truncated"}
    bad[3].write_bytes(image(103))
    assert retry(out)
    assert quarantine_of(out) == {} and len(content(out)) == 34
    assert not retry(out)


def test_a_file_that_changed_since_the_plan(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 12)
    changed = sorted(src.rglob("*.png"))[0]
    reporter = SilentReporter()
    reporter.begin = lambda planned, done: changed.write_bytes(image(7))  # type: ignore[method-assign]  # planned, not yet read
    tokenize(src, out, reporter=reporter)
    name = changed.relative_to(src).as_posix()
    assert quarantine_of(out) == {name: "changed_since_plan"}
    assert retry(out)
    assert quarantine_of(out) == {} and name in ids(out)


def test_a_bad_member_fixed_in_place(tmp_path: Path) -> None:
    path, out = tar(tmp_path / "a#1.tar", images(10, x=BAD, y=BAD)), tmp_path / "out"
    tar(tmp_path / "a", {})  # a name that is the other's up to its #
    tokenize(tmp_path / "*.tar", out)
    before = content(out)
    assert quarantine_of(out) == {"a#1.tar#x": "truncated", "a#1.tar#y": "truncated"}
    tar(path, images(10, x=image(50), y=BAD))
    assert retry(out)
    assert quarantine_of(out) == {"a#1.tar#y": "truncated"}
    assert ids(out) - before.keys() == {"a#1.tar#x"}
    tar(path, images(10, x=image(50), y=image(51)))
    assert retry(out)
    assert quarantine_of(out) == {} and len(ids(out)) == 12


def test_damaged_tars_replaced_by_whole_ones(tmp_path: Path) -> None:
    """One that ended early, one that could not be read at all, one that was missing, and a whole one, two to a shard."""
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    sets = {name: {f"{name}{n}": image(n) for n in range(9)} for name in "abcd"}
    sets["a"]["a1"] = BAD
    paths = {name: tar(src / f"{name}.tar", found) for name, found in sets.items()}
    whole = {name: path.read_bytes() for name, path in paths.items()}
    paths["a"].write_bytes(whole["a"][: len(whole["a"]) // 2])
    paths["b"].write_bytes(b"nothing of a tar" * 100)
    tokenize(src, out, source=SourceConfig(tars_per_shard=2))
    quarantined = quarantine_of(out)
    assert set(quarantined.values()) == {"truncated", "bad_container"} and len(quarantined) == 3
    assert any(sample_id.startswith("a.tar#@") for sample_id in quarantined) and "b.tar" in quarantined
    assert retry(out)  # nothing was mended: all of it fails again, and nothing is doubled
    assert quarantine_of(out) == quarantined
    for name, data in whole.items():
        paths[name].write_bytes(data)
    assert retry(out)
    assert quarantine_of(out) == {"a.tar#a1": "truncated"}
    assert ids(out) == {f"{name}.tar#{key}" for name, found in sets.items() for key in found} - {"a.tar#a1"}
    paths["a"].unlink()
    assert retry(out)
    assert quarantine_of(out) == {"a.tar": "missing"}


@pytest.mark.parametrize("id_column", [None, "key"])
def test_tables_of_bytes(tmp_path: Path, id_column: str | None) -> None:
    """Two tables whose paths end alike, so that a failure of one could be taken for the other's."""
    root = tmp_path / "x"
    (root / "x").mkdir(parents=True)
    keys = {"": [f"top-{n}" for n in range(20)], "x": [f"deep-{n}" for n in range(20)]}

    def write(folder: str, *bad: int, row_group_size: int = 8) -> None:
        cells = [BAD if n in bad else image(n) for n in range(20)]
        table(root / folder / "t.parquet", cells, row_group_size=row_group_size, key=keys[folder])

    def name(folder: str, row: int) -> str:
        path = f"{folder}/t.parquet" if folder else "t.parquet"
        return f"{path}#{row}" if id_column is None else keys[folder][row]

    write("", 3, 17)
    write("x", 3, 5)
    tokenize(root, tmp_path / "out", shard_rows=100, source=SourceConfig(id_column=id_column))
    out = tmp_path / "out"
    assert quarantine_of(out) == {name("", 3): "truncated", name("", 17): "truncated", name("x", 3): "truncated", name("x", 5): "truncated"}
    write("", 17)
    write("x", 3, row_group_size=3)  # written anew with other row groups
    assert retry(out)
    assert quarantine_of(out) == {name("", 17): "truncated", name("x", 3): "truncated"}
    table(root / "t.parquet", [image(0)] * 2, key=["a", "b"])  # the row is gone
    write("x")
    assert retry(out)
    (left,) = quarantine_of(out).items()
    assert left == ("t.parquet#17", "bad_container")
    write("")
    assert retry(out)
    assert quarantine_of(out) == {}
    assert ids(out) == {name(folder, row) for folder in keys for row in range(20)}


def test_a_table_of_bytes_that_changed_as_a_whole(tmp_path: Path) -> None:
    path, out = table(tmp_path / "t.parquet", [image(n) for n in range(20)], key=[f"id-{n}" for n in range(20)]), tmp_path / "out"
    reporter = SilentReporter()
    reporter.begin = lambda planned, done: os.utime(path, (1, 1))  # type: ignore[method-assign]
    tokenize(path, out, reporter=reporter, source=SourceConfig(id_column="key"))
    assert quarantine_of(out) == {f"t.parquet#{n}": "changed_since_plan" for n in range(20)}
    assert retry(out)
    assert ids(out) == {f"id-{n}" for n in range(20)} and quarantine_of(out) == {}


@pytest.mark.parametrize("id_column", [None, "key"])
def test_tables_of_uris(tmp_path: Path, id_column: str | None) -> None:
    out = tmp_path / "out"
    for n in range(8):
        (tmp_path / f"{n}.png").write_bytes(image(n) if n != 3 else BAD)
    lines = [f"k{n},{n}.png,{n % 2}" for n in range(10)]  # two files are missing
    (tmp_path / "t.csv").write_text("\n".join(["key,url,label", *lines, "k0,1.png,0", "k8,2.png,1"]) + "\n")  # and two ids occur twice
    tokenize(tmp_path / "t.csv", out, source=SourceConfig(id_column=id_column))
    first = quarantine_of(out)
    for n in (3, 8, 9):
        (tmp_path / f"{n}.png").write_bytes(image(n))
    before = content(out)
    assert retry(out)
    if id_column is None:
        assert set(first.values()) == {"truncated", "missing"} and len(first) == 3
        assert quarantine_of(out) == {} and len(ids(out)) == 12
    else:
        assert quarantine_of(out)["k0"] == "duplicate_id"
        assert ids(out) == {f"k{n}" for n in range(10)}
        assert content(out)["k0"] == before["k0"]
        assert retry(out) and quarantine_of(out)["k0"] == "duplicate_id"


def test_an_interrupted_retry_continues(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 12, bad=3)
    tokenize(src, out)
    before = content(out)
    for path in src.rglob("bad_*"):
        path.write_bytes(image(5))
    store = Store(str(out))
    config = SourceConfig()
    planned = plan_retry(store, source_root(str(src), config), config)
    assert planned is not None
    found = verify_dataset(Store(str(out)))
    assert not found.ok and not found.complete
    assert [(problem.object, problem.kind) for problem in found.problems] == [("manifest.json", "incomplete")]
    assert content(out) == before  # readers go on with the generation that is complete
    assert not dataset_report(store).complete
    repair = repair_dataset(store, apply=True)
    assert repair.steps == [] and repair.tokenize_needed
    again = plan_retry(store, source_root(str(src), config), config)
    assert again == (planned[0], 3)
    request = TokenizeRequest(source_url=str(src), out_url=str(out), run=RunConfig(workers=1))
    finish_chain(store, load_chain(store), request, InlineRunner(), SilentReporter())
    assert quarantine_of(out) == {} and len(ids(out)) == 15
    check_totals(out)


def test_a_moved_source_and_the_command_line(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 12, bad=2)
    tokenize(src, out)
    src.rename(tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("bad_*"):
        path.write_bytes(image(5))
    report = call_json("retry-failed", str(out), "--source", str(tmp_path / "moved"), "-q", "--workers", "1")
    assert (report["images_planned"], report["images_committed"], report["images_quarantined"]) == (14, 14, 0)
    assert call_json("retry-failed", str(out)) == {"retried": 0}
    text, _ = call_cli("retry-failed", str(out))
    assert "nothing is in quarantine" in text
    check_totals(out)


def test_refusals(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    with pytest.raises(MissingObjectError, match="no dataset is here"):
        retry_failed(str(out), None, RunConfig(workers=1), {}, SilentReporter())
    write_images(src, 12, bad=2)
    tokenize(src, out)
    plan = load_plan(Store(str(out)))
    assert plan is not None
    with Heartbeat(Store(str(out)), plan.plan_id, dict), pytest.raises(LiveRunError, match="cannot retry failed inputs"):
        retry_failed(str(out), None, RunConfig(workers=1), {}, SilentReporter())
    (out / "manifest.json").unlink()
    with pytest.raises(IncompleteError, match="First run the same `tokenshards tokenize` again"):
        retry_failed(str(out), None, RunConfig(workers=1), {}, SilentReporter())


@pytest.mark.parametrize("same_moment", [False, True])
def test_two_retries_at_once_make_one_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_moment: bool) -> None:
    """Both would write `plan/current.json`, and the loser's pointer named the sha256 of another plan."""
    monkeypatch.setattr(heartbeat, "_GIVE_WAY_SECONDS", 0.0)
    if same_moment:  # each looked for another run before the other had a record

        def look(store: Store, verb: str, *, besides: str = "") -> None:
            if besides:
                refuse_beside_live_run(store, verb, besides=besides)

        monkeypatch.setattr(conversion, "refuse_beside_live_run", look)
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 6, bad=2)
    tokenize(src, out)
    refused: list[str] = []

    def plan_while_another_starts(*arguments: Any) -> Any:
        with pytest.raises(LiveRunError) as error:
            retry(out)
        refused.append(str(error.value))
        return plan_retry(*arguments)

    monkeypatch.setattr(conversion, "plan_retry", plan_while_another_starts)
    assert retry_failed(str(out), None, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner()) is not None
    assert len(refused) == 1 and "cannot retry failed inputs, another run is at work" in refused[0]
    assert verify_dataset(Store(str(out))).ok
