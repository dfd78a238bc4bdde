"""`publish`: the copy verifies and opens, holds nothing of who made it, and is continued, never mixed."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.datasets import SilentReporter, call_cli, content, convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.conversion.tokenize import retry_failed
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, IncompleteError, PlanError
from tokenshards.pipeline.ledger.public_copy import publish_dataset
from tokenshards.pipeline.ledger.reencode import ReencodingConfig, reencode_sample
from tokenshards.pipeline.ledger.repair import repair_dataset
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.reports.quarantine import quarantined_inputs
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.storage.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two generations with quarantined inputs, and `public`, its copy."""
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "photos", 12, bad=3)
    convert(folder / "photos", folder / "out", shard_rows=5, views="flip", runner=InlineRunner())
    mended = sorted((folder / "photos").rglob("bad_*"))[0]
    mended.write_bytes(next((folder / "photos").rglob("img_*.png")).read_bytes())
    assert retry_failed(str(folder / "out"), None, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner()) is not None
    publish_dataset(Store(str(folder / "out")), Store(str(folder / "public")))
    return folder


@pytest.fixture
def public(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "public", tmp_path / "public")
    return tmp_path / "public"


def rows(out: Path) -> list[tuple[str, int, bytes]]:
    dataset = open_dataset(str(out), verify=True)
    batch = next(dataset.batches(1000, columns=["view"]))
    return [
        (name, view, ids.tobytes())
        for name, view, ids in zip(batch.sample_ids, batch.table["view"].to_pylist(), batch.ids_BLQ, strict=True)
    ]


def test_the_copy_verifies_and_opens(made: Path, public: Path) -> None:
    found = verify_dataset(Store(str(public)))
    assert found.problems == [] and found.ok and found.rows_checked == 26 and found.unreferenced == []
    assert rows(public) == rows(made / "out")
    ours, theirs = open_dataset(str(made / "out")), open_dataset(str(public))
    assert (theirs.classes, theirs.spec, theirs.views) == (
        ours.classes,
        ours.spec,
        2,
    ) and theirs.codebook().keys() == ours.codebook().keys()
    for command in ("verify", "inspect", "status"):
        assert "Traceback" not in call_cli(command, str(public))[1]
    status = json.loads(call_cli("status", str(public), "--json")[0])
    assert (status["images_committed"], status["images_planned"], status["complete"]) == (13, 13, True)
    assert list(quarantined_inputs(Store(str(public)))) == []


def test_nothing_tells_who_made_it_where_and_from_what(made: Path, public: Path) -> None:
    """Every byte of every object, decoded where it is a table, is looked through."""
    assert sorted(path.name for path in public.iterdir() if path.is_dir()) == ["shards", "tokenizer"]
    private = [str(made).encode(), b'"pid"', b'"host"', f'"{socket.gethostname()}"'.encode(), f'"pid":{os.getpid()}'.encode(), b"bad_0014"]
    for path in public.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert [word for word in private if word in data] == [], path
    manifest = load_manifest(Store(str(public)))
    assert manifest.card["source"] == "`photos`" and "| source | `photos` |" in (public / "README.md").read_text()
    assert manifest.totals["images_quarantined"] == 0
    assert all(entry.quarantine_path is None and entry.commit_sha256 == "" for entry in manifest.shards)


def test_damage_to_a_copy_is_named_and_never_mended_away(public: Path) -> None:
    shard = next((public / "shards").iterdir())
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert [problem.object for problem in verify_dataset(Store(str(public))).problems] == [f"shards/{shard.name}"]
    repair = repair_dataset(Store(str(public)), apply=True)
    assert {step.action for step in repair.steps} == {"refuse"} and "published copy" in repair.steps[0].detail
    shard.write_bytes(whole)
    table = next(public.glob("shards-*.parquet"))
    table.write_bytes(table.read_bytes()[:-1])
    repair = repair_dataset(Store(str(public)), apply=True)
    assert {step.action for step in repair.steps} == {"refuse"} and (public / "manifest.json").exists()
    assert any("copy it again from its original place" in step.detail for step in repair.steps)


def test_nothing_is_added_to_a_copy(made: Path, public: Path) -> None:
    before = sorted(public.rglob("*"))
    with pytest.raises(PlanError, match="is a published copy without a plan"):
        convert(made / "photos", public, runner=InlineRunner())
    with pytest.raises(PlanError, match="is a published copy"):
        retry_failed(str(public), None, RunConfig(workers=1), {}, SilentReporter(), InlineRunner())
    state = verify_dataset(Store(str(public))).state
    with pytest.raises(PlanError, match="does not record where its images are"):
        reencode_sample(Store(str(public)), state, ReencodingConfig(rows=1, seed=0, min_agreement=1.0, source_url=None), {})
    assert sorted(public.rglob("*")) == before


def test_a_copy_gives_its_tokenizer_and_classes_to_another_dataset(public: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "val", 4, seed=9)
    convert(tmp_path / "val", tmp_path / "val.tokens", tokenizer=str(public), runner=InlineRunner())
    assert open_dataset(str(tmp_path / "val.tokens")).spec == open_dataset(str(public)).spec
    assert len(content(tmp_path / "val.tokens")) == 4


def test_publishing_again_continues_and_mixes_nothing(made: Path, public: Path, tmp_path: Path) -> None:
    (public / "manifest.json").unlink()
    next((public / "shards").iterdir()).unlink()
    said = json.loads(call_cli("publish", str(made / "out"), str(public), "--json")[0])
    assert said["copied"] == 1 and said["images"] == 13 and verify_dataset(Store(str(public))).ok
    publish_dataset(Store(str(made / "out")), Store(str(public)))
    write_images(tmp_path / "others", 4, seed=5)
    convert(tmp_path / "others", tmp_path / "other", runner=InlineRunner())
    with pytest.raises(ConfigError, match="holds another data set"):
        publish_dataset(Store(str(tmp_path / "other")), Store(str(public)))
    with pytest.raises(ConfigError, match="holds a data set that was made there"):
        publish_dataset(Store(str(made / "out")), Store(str(tmp_path / "other")))
    with pytest.raises(ConfigError, match="one contains the other"):
        publish_dataset(Store(str(made / "out")), Store(str(made / "out" / "public")))


def test_only_what_is_whole_is_published(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made / "out", out)
    shard = next((out / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptObjectError, match="Nothing damaged is published"):
        publish_dataset(Store(str(out)), Store(str(tmp_path / "public")))
    assert not (tmp_path / "public" / "manifest.json").exists()
    (out / "manifest.json").unlink()
    with pytest.raises(IncompleteError, match="has no manifest, so it is not complete"):
        publish_dataset(Store(str(out)), Store(str(tmp_path / "public")))
