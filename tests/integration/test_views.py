"""`tokenize --views`: rows of every view, the same whoever makes them; every other command counts images, or refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.datasets import SilentReporter, call_cli, convert, quarantine_of, run_cli, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.conversion.tokenize import retry_failed
from tokenshards.pipeline.images.views import decode_views
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_chain, load_plan
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.codecs import get_codec
from tokenshards.pipeline.shards.commit import commit_path, read_commit, write_object
from tokenshards.pipeline.shards.manifest import MANIFEST_POINTER, load_manifest
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.writer import ShardRows, encode_shard
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import load_tokenizer
from tokenshards.pipeline.view_policy import ViewPolicy

IMAGES, BAD = 40, 3
COUNTS = {"flip": 2, "ten-crop": 10, "5": 5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images `src`, their tokens `one`, and with the same tokenizer those of each policy."""
    folder = tmp_path_factory.mktemp("several")
    write_images(folder / "src", IMAGES, bad=BAD, side=48)
    convert(folder / "src", folder / "one", shard_rows=12, runner=InlineRunner())
    for views in COUNTS:
        fit = {"tokenizer": str(folder / "one" / "tokenizer"), "batch_rows": 64}
        convert(folder / "src", folder / views, views=views, shard_rows=12, runner=InlineRunner(), **fit)
    return folder


def command(made: Path, out: Path, views: str, workers: int = 2) -> list[str]:
    fit = ["--tokenizer", str(made / "one" / "tokenizer"), "--shard-rows", "12", "--max-bad", "1"]
    return ["tokenize", str(made / "src"), str(out), *fit, "--views", views, "--workers", str(workers), "-q"]


def rows_of(out: Path) -> list[dict[str, Any]]:
    dataset = open_dataset(str(out), verify=True)
    rows = []
    for entry in dataset.shards:
        data = dataset.open_shard(entry).read()
        ids = [np.ascontiguousarray(row).tobytes() for row in data.tokens.ids_BLQ]
        rows += [{**row, "ids": value} for row, value in zip(data.table.to_pylist(), ids, strict=True)]
    return rows


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for folder in ("shards", "quarantine") for path in (out / folder).glob("*.parquet")}


@pytest.mark.parametrize("views", COUNTS)
def test_rows_of_every_view(made: Path, views: str) -> None:
    count, rows, usual = COUNTS[views], rows_of(made / views), rows_of(made / "one")
    assert [(row["sample_id"], row["view"]) for row in rows] == [(row["sample_id"], view) for row in usual for view in range(count)]
    for row, first in zip(rows, (row for row in usual for _ in range(count)), strict=True):
        assert all(row[name] == first[name] for name in ("label", "orig_width", "orig_height", "orig_bytes"))
    dataset = open_dataset(str(made / views))
    tokenizer, policy = load_tokenizer(dataset.store, "tokenizer"), ViewPolicy.parse(views)
    for start in range(0, len(rows), count):
        own = rows[start : start + count]
        data = (made / "src" / own[0]["sample_id"]).read_bytes()
        found = decode_views(data, tokenizer.spec.preprocess, policy, seed=0, sample_id=own[0]["sample_id"])
        for row, box, mirrored in zip(own, found.boxes, found.mirrored, strict=True):
            assert row["crop"] == pytest.approx(box) and row["flip"] is mirrored
        ids_BLQ = tokenizer.encode(found.pixels_VHWC).ids_BLQ
        same = np.mean([np.frombuffer(row["ids"], ids_BLQ.dtype) == ids.ravel() for row, ids in zip(own, ids_BLQ, strict=True)])
        assert same > 0.97, "another batching may flip an id"
    if views != "ten-crop":
        same = [row["ids"] == first["ids"] for row, first in zip(rows[::count], usual, strict=True)]
        assert np.mean(same) > 0.9, "view 0 is the image as it is without views"
    assert len({row["ids"] for row in rows}) > 0.7 * len(rows)


@pytest.mark.parametrize("views", COUNTS)
def test_every_image_is_accounted_for_once(made: Path, views: str) -> None:
    out, count = made / views, COUNTS[views]
    found = verify_dataset(Store(str(out)))
    assert found.ok and found.rows_checked == IMAGES * count, found.problems
    assert quarantine_of(out) == quarantine_of(made / "one") and len(quarantine_of(out)) == BAD
    report, usual = (json.loads(call_cli("status", str(place), "--json")[0]) for place in (out, made / "one"))
    for name in ("images_planned", "images_committed", "images_quarantined", "bytes_in", "shards_planned", "quarantine_reasons"):
        assert report[name] == usual[name], name
    assert report["views"] == count and "views" not in usual
    manifest, one = load_manifest(Store(str(out))), load_manifest(Store(str(made / "one")))
    assert manifest.view_policy == views and manifest.class_counts == tuple(count * rows for rows in one.class_counts)
    assert manifest.totals["id_count"] == count * one.totals["id_count"]
    assert f"rows of each ({count} per image)" in call_cli("inspect", str(out))[0]


def test_without_views_nothing_is_said_of_them(made: Path) -> None:
    out = made / "one"
    (shard, *_) = (out / "shards").glob("*.parquet")
    assert not {"crop", "flip"} & set(pq.read_schema(shard).names)
    assert all(b"views" not in path.read_bytes() for path in out.glob("*.json"))
    assert all(b"view_policy" not in path.read_bytes() for path in out.glob("manifest*.json"))
    call_cli(*command(made, out, "1"))  # one view is no other policy than none


@pytest.mark.parametrize("point", ["after-data-put", "after-commit-put", "decode"])
def test_a_crash_and_other_workers_change_no_byte(made: Path, tmp_path: Path, point: str) -> None:
    out = tmp_path / "out"
    env = {"TOKENSHARDS_FAULT": f"point={point},times=2,victim=worker,log={tmp_path / 'fault.log'}"}
    run_cli(*command(made, out, "5", workers=1), env=env)
    assert (tmp_path / "fault.log").read_text().count(" killed ") == 2
    assert shards_of(out) == shards_of(made / "5")
    assert load_plan(Store(str(out))).plan_id == load_plan(Store(str(made / "5"))).plan_id  # type: ignore[union-attr]


def test_policies_are_different_plans(made: Path) -> None:
    plans = [load_plan(Store(str(made / name))) for name in ("one", *COUNTS)]
    assert len({plan.plan_id for plan in plans if plan is not None}) == 4
    assert len({part.digest for plan in plans if plan is not None for part in plan.parts}) == 1


def test_another_policy_or_a_bad_one_is_refused(made: Path, tmp_path: Path) -> None:
    _, err = call_cli(*command(made, made / "flip", "5"), expect=2)
    assert "--views 5 (the plan has flip)" in err
    call_cli(*command(made, made / "flip", "one"))  # the default asks for nothing
    for name in ("tokenize", "plan"):
        _, err = call_cli(name, str(made / "src"), str(tmp_path / "out"), "--views", "0", expect=2)
        assert "--views is '0'; expected one, flip, ten-crop" in err
    assert not (tmp_path / "out").exists()


def test_retried_images_get_the_views_of_the_plan(made: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "src", 9, bad=2)
    out = tmp_path / "out"
    convert(tmp_path / "src", out, views="3", shard_rows=6, runner=InlineRunner())
    broken = sorted(quarantine_of(out))
    good = (tmp_path / "src" / "class_0" / "img_0000.jpg").read_bytes()
    (tmp_path / "src" / broken[0]).write_bytes(good)
    assert retry_failed(str(out), None, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner()) is not None
    assert [plan.view_policy for plan in load_chain(Store(str(out)))] == ["3", "3"]
    dataset = open_dataset(str(out))
    assert len(dataset) == 30 and dataset.views == 3
    assert [dataset.sample(broken[0], view).row["view"] for view in range(3)] == [0, 1, 2]
    assert list(quarantine_of(out)) == broken[1:]
    assert verify_dataset(Store(str(out))).ok
    report = json.loads(call_cli("status", str(out), "--json")[0])
    assert (report["images_planned"], report["images_committed"], report["images_quarantined"]) == (11, 10, 1)


def test_verify_finds_views_that_are_lost_or_out_of_order(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(made / "src", out, views="flip", tokenizer=str(made / "one" / "tokenizer"), shard_rows=12, runner=InlineRunner())
    store = Store(str(out))
    plan = load_plan(store)
    assert plan is not None
    commit, _ = read_commit(store, plan.plan_id, 0)
    assert commit.data is not None
    reader = ShardReader.open(store, commit.data.path)
    for order in (np.r_[1, 0, 2 : commit.rows], np.r_[0 : commit.rows - 1]):
        data, table = reader.read(), reader.read_columns()
        taken = table.take(order)
        columns = {name: taken[name] for name in taken.column_names}
        encoded = encode_shard(
            ShardRows(
                sample_id=columns["sample_id"].to_pylist(),
                label=columns["label"].to_pylist(),
                meta={},
                crop=np.array(columns["crop"].to_pylist(), np.float32),
                **{name: columns[name].to_numpy() for name in ("view", "orig_width", "orig_height", "orig_bytes", "flip")},
            ),
            data.tokens.take(order),
            spec=reader.spec,
            codec=get_codec(plan.codec),
            label_type="string",
            meta_types={},
        )
        wrong = replace(commit, data=write_object(store, "shards", 0, encoded.data), rows=len(order))
        store.write(commit_path(plan.plan_id, 0), wrong.to_bytes())
        store.delete(MANIFEST_POINTER)
        assert "views" in {problem.kind for problem in verify_dataset(store).problems}


def test_commands_that_look_at_images_show_view_0(made: Path, tmp_path: Path) -> None:
    for views in ("flip", "ten-crop"):
        arguments = ("preview", str(made / views), "--to", str(tmp_path / "a.png"), "-n", "6", "--json")
        shown = json.loads(call_cli(*arguments, "--source", str(made / "src"))[0])
        assert len(set(shown["sample_ids"])) == 6 and min(shown["psnr_db"]) > 12, "against the same view of the originals"
        shown = json.loads(call_cli(*arguments, "--class", "class_1")[0])
        assert len(set(shown["sample_ids"])) == 6 and all(name.startswith("class_1/") for name in shown["sample_ids"])


def test_seit_has_no_room_for_views(made: Path, tmp_path: Path) -> None:
    _, err = call_cli("export", "seit", str(made / "flip"), str(tmp_path / "seit"), expect=2)
    assert "2 views per image; SeiT's format holds one row per image" in err


def test_an_estimate_counts_images_and_weighs_their_views(made: Path, tmp_path: Path) -> None:
    found = {}
    for views in ("one", "ten-crop"):
        arguments = ("plan", str(made / "src"), str(tmp_path / "out"), "--tokenizer", str(made / "one" / "tokenizer"))
        found[views] = json.loads(call_cli(*arguments, "--views", views, "--json")[0])
    one, ten = found["one"], found["ten-crop"]
    assert one["images"] == ten["images"] == IMAGES + BAD
    assert 0 < one["bad_share"] < 0.3 and 0 <= ten["bad_share"] < 0.3
    assert ten["bytes_out"] == pytest.approx(ten["bytes_per_image"] * ten["images"] + ten["tables_bytes"], rel=0.01)
    assert ten["bytes_per_image"] > 1.5 * one["bytes_per_image"], "fixed costs of a shard are shared by more rows"
