"""Real runs over images with masks: every form of source, bad masks, retry, changes, crashes, damage, and what reads the result.

The tokenizer of most runs stores the pixels of the view, taken as masks are: so a mask must be the class of the colours in its row.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tokenshards
from tests.datasets import call_cli, call_json, content, quarantine_of, run_cli
from tests.masks import COLOURS, agreement, drawn_mask, json_lines, pixel_tokenizer, png, write_masked, write_table, write_tar
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_plan, read_shard_rows
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.commit import read_commit
from tokenshards.pipeline.shards.manifest import load_manifest, publish_manifest
from tokenshards.pipeline.shards.masks import MASK
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.storage.store import Store

COUNT = 14


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and masks in folders, a tokenizer, and their dataset `out` of three shards."""
    root = tmp_path_factory.mktemp("masks")
    write_masked(root, COUNT)
    pixel_tokenizer(root / "pixels.tok")
    call_cli(*arguments(root, "out"))
    return root


def arguments(root: Path, out: str, *more: str, masks: str = "masks") -> list[str]:
    words = [
        "tokenize",
        str(root / "images"),
        str(root / out),
        "--tokenizer",
        str(root / "pixels.tok"),
        "--workers",
        "1",
        "--shard-rows",
        "5",
    ]
    return [*words, *(["--masks", str(root / masks)] if masks else []), *more]


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "shards").iterdir()}


def test_masks_of_a_folder_fit_the_tokens(made: Path) -> None:
    dataset = open_dataset(str(made / "out"))
    assert agreement(made / "out") == COUNT and dataset.mask_classes == 4
    assert dataset.mask is not None and (dataset.mask.dtype, dataset.mask.width, dataset.mask.height) == ("uint8", 24, 24)
    plan = load_plan(Store(str(made / "out")))
    assert plan is not None and plan.format_version == "1.3" and plan.mask is not None
    wanted = {"dtype": "uint8", "height": 24, "width": 24, "ignore": 255, "kind": "folder", "ignored": [], "mapped": []}
    assert plan.mask == {**wanted, "source": str(made / "masks")}
    rows = read_shard_rows(Store(str(made / "out")), plan, 0)
    assert {row.mask_path for row in rows} <= {f"class_{number % 2}/{number:03d}.png" for number in range(COUNT)}
    assert all(row.mask_size == (made / "masks" / str(row.mask_path)).stat().st_size for row in rows)
    found = verify_dataset(Store(str(made / "out")))
    assert found.ok and found.masks == dataset.manifest.mask and dataset.manifest.mask.images == COUNT


def test_a_moved_source_gives_the_same_plan(made: Path, tmp_path: Path) -> None:
    """Masks inside SRC are recorded relative to it; elsewhere, by their place, which is no part of the plan's identity."""
    for name in ("images", "masks"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copytree(made / "pixels.tok", tmp_path / "pixels.tok")
    call_cli(*arguments(tmp_path, "out"))
    plans = [load_plan(Store(str(root / "out"))) for root in (made, tmp_path)]
    assert plans[0] is not None and plans[1] is not None and plans[0].plan_id == plans[1].plan_id
    assert shards_of(tmp_path / "out") == shards_of(made / "out")


def test_the_same_images_without_masks_make_the_plan_of_before(made: Path) -> None:
    call_cli(*arguments(made, "plain", masks=""))
    plan = load_plan(Store(str(made / "plain")))
    assert plan is not None and plan.format_version == "1.0" and b'"mask' not in plan.to_bytes()
    part = pq.read_schema(made / "plain" / plan.parts[0].path)
    assert not [name for name in part.names if "mask" in name]
    assert content(made / "plain") == content(made / "out")
    assert {path.name for path in (made / "plain" / "shards").iterdir()}.isdisjoint(shards_of(made / "out"))


@pytest.mark.parametrize("views", ["flip", "ten-crop", "3"])
def test_views_cut_masks_as_images(made: Path, views: str) -> None:
    call_cli(*arguments(made, f"views-{views}", "--views", views))
    dataset = open_dataset(str(made / f"views-{views}"))
    edge_free = []
    for row in dataset:
        assert row.mask_HW is not None
        same = (COLOURS[row.mask_HW] == row.ids_LQ.reshape(24, 24, 3)).all(axis=2)
        edge_free.append(same.mean())
    # ten-crop cuts crops from a resized image, and so rounds once more than the mask; in random boxes the middle of a pixel may lie just
    # between two pixels of the source
    assert min(edge_free) > {"flip": 0.999, "ten-crop": 0.85, "3": 0.95}[views], edge_free


def test_bicubic_images_agree_with_masks_away_from_edges(made: Path) -> None:
    tokenizer = pixel_tokenizer(made / "smooth.tok", size=20, filter="bicubic")
    words = arguments(made, "smooth")
    words[words.index("--tokenizer") + 1] = tokenizer
    call_cli(*words)
    for row in open_dataset(str(made / "smooth")):
        assert row.mask_HW is not None
        colours = row.ids_LQ.reshape(20, 20, 3).astype(int)
        padded = np.pad(row.mask_HW, 2, mode="edge")
        around = np.stack([padded[y : y + 20, x : x + 20] for y in range(5) for x in range(5)])
        flat = (around == row.mask_HW).all(axis=0)
        alike = (np.abs(colours - COLOURS[row.mask_HW]) <= 2).all(axis=2)
        assert flat.mean() > 0.3 and alike[flat].mean() > 0.96, row.sample_id  # a strip between two pixels of the view is not in its mask


def test_masks_inside_the_source_are_no_images(made: Path) -> None:
    words = ["tokenize", str(made), str(made.parent / "inside"), "--tokenizer", str(made / "pixels.tok"), "--workers", "1"]
    (made / "apart").mkdir(exist_ok=True)
    for name in ("images", "masks"):
        shutil.copytree(made / name, made / "apart" / name, dirs_exist_ok=True)
    words[1] = str(made / "apart")
    _, said = call_cli(*words, "--masks", str(made / "apart" / "masks"))
    assert f"{COUNT} of {COUNT} images have one, such as class_" in said and "the first folder of an image's path is not in that" in said
    assert f"{COUNT} of the masks such as masks/class_" in said
    assert agreement(made.parent / "inside") == COUNT
    plan = load_plan(Store(str(made.parent / "inside")))
    assert plan is not None and plan.mask is not None and plan.mask["source"] == "masks"


@pytest.mark.parametrize("form", ["bytes", "struct", "base64", "paths", "tar"])
def test_masks_of_tables_and_tars(form: str, made: Path, tmp_path: Path) -> None:
    without, column, source = (4, 9), "mask", tmp_path / "t.parquet"
    if form in ("bytes", "struct"):
        write_table(source, COUNT, without, form)
    elif form == "base64":
        cells = [
            (base64.b64encode(png(COLOURS[drawn_mask(row)])).decode(), base64.b64encode(png(drawn_mask(row))).decode())
            for row in range(COUNT)
        ]
        source = tmp_path / "t.jsonl"
        source.write_text(json_lines([{"image": a, "mask": None if row in without else b} for row, (a, b) in enumerate(cells)]))
    elif form == "paths":
        source = tmp_path / "t.csv"
        names = [f"class_{row % 2}/{row:03d}.png" for row in range(COUNT)]
        lines = [f"{made}/images/{name},{'' if row in without else f'{made}/masks/{name}'}\n" for row, name in enumerate(names)]
        source.write_text("".join(["file,mask\n", *lines]))
    else:
        source, column = tmp_path / "t.tar", "seg.png"
        write_tar(source, COUNT, without)
    words = [
        "tokenize",
        str(source),
        str(tmp_path / "out"),
        "--tokenizer",
        str(made / "pixels.tok"),
        "--workers",
        "1",
        "--mask-column",
        column,
    ]
    _, said = call_cli(*words, *(["--image-column", "file"] if form == "paths" else []))
    assert f"2 of {COUNT} images have no mask" in said and "masks: 24 x 24 pixels of uint8" in said
    names = sorted(content(tmp_path / "out"))
    missing = {name for name in names if open_dataset(str(tmp_path / "out")).sample(name).mask_HW is None}
    assert len(missing) == 2 and agreement(tmp_path / "out", missing) == COUNT - 2
    assert "rows checked, 12 of them with a mask" in call_cli("verify", str(tmp_path / "out"))[0]
    out, _ = call_cli("verify", str(tmp_path / "out"), "--re-encode", str(COUNT))
    assert "12 masks made again: all are the same" in out


def test_bad_masks_are_quarantined_and_mended_by_a_retry(made: Path, tmp_path: Path) -> None:
    for name in ("images", "masks", "pixels.tok"):
        shutil.copytree(made / name, tmp_path / name)
    masks = tmp_path / "masks"
    whole = {number: (masks / f"class_{number % 2}" / f"{number:03d}.png") for number in range(COUNT)}
    kept = {number: path.read_bytes() for number, path in whole.items()}
    whole[0].write_bytes(kept[0][:60])
    whole[1].write_bytes(png(drawn_mask(1)[:-3]))
    whole[2].unlink()
    Image.fromarray(drawn_mask(3)).save(whole[3].with_suffix(".jpg"))
    whole[3].unlink()
    (masks / "alone.png").write_bytes(kept[4])
    _, said = call_cli(*arguments(tmp_path, "out", "--max-bad", "0.5"))
    assert f"{COUNT - 1} of {COUNT} images have one" in said and "1 image has no mask, such as class_0/002.png; stored without one" in said
    assert "1 mask has no image and is left out" in said and "2 of 13 masks that were looked at cannot be used: class_" in said
    out = tmp_path / "out"
    assert quarantine_of(out) == {f"class_{number % 2}/{number:03d}.png": "bad_mask" for number in (0, 1, 3)}
    listed = call_json("quarantine", str(out))["inputs"]
    details = {row["sample_id"]: row["detail"] for row in listed}
    assert "the mask has 48 x 33 pixels, its image 48 x 36" in details["class_1/001.png"]
    assert "the mask is a JPEG" in details["class_1/003.png"] and "the mask cannot be read" in details["class_0/000.png"]
    assert agreement(out, {"class_0/002.png"}) == COUNT - 4
    whole[0].write_bytes(kept[0])
    whole[1].write_bytes(kept[1])
    call_cli("retry-failed", str(out), "--workers", "1")
    assert quarantine_of(out) == {"class_1/003.png": "bad_mask"} and agreement(out, {"class_0/002.png"}) == COUNT - 2
    manifest = open_dataset(str(out)).manifest
    assert manifest.mask is not None and manifest.mask.images == COUNT - 2 and manifest.generation == 2
    assert verify_dataset(Store(str(out))).ok


def test_a_mask_that_changed_since_the_plan_is_found(made: Path, tmp_path: Path) -> None:
    for name in ("images", "masks", "pixels.tok"):
        shutil.copytree(made / name, tmp_path / name)
    fault = {"TOKENSHARDS_FAULT": f"point=after-data-put,times=1,victim=driver,log={tmp_path / 'log'}"}
    run_cli(*arguments(tmp_path, "out"), env=fault, expect=-signal.SIGKILL)
    shutil.rmtree(tmp_path / "out" / "shards")
    (tmp_path / "masks" / "class_0" / "004.png").write_bytes(png(drawn_mask(5)))
    (tmp_path / "masks" / "class_1" / "005.png").unlink()
    call_cli(*arguments(tmp_path, "out", "--max-bad", "1", masks=""))
    assert quarantine_of(tmp_path / "out") == {"class_0/004.png": "changed_since_plan", "class_1/005.png": "bad_mask"}
    call_cli("retry-failed", str(tmp_path / "out"), "--workers", "1")
    assert quarantine_of(tmp_path / "out") == {"class_1/005.png": "bad_mask"}


POINTS = ("after-listing", "after-plan-part", "after-plan-json", "after-data-put", "after-quarantine-put", "after-commit-put")
END_POINTS = ("after-last-commit", "between-manifest-and-pointer")


def test_a_run_that_is_killed_at_every_crash_point_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    for name in ("images", "masks", "pixels.tok"):
        shutil.copytree(made / name, tmp_path / name)
    (tmp_path / "masks" / "class_1" / "001.png").write_bytes(b"no mask")
    call_cli(*arguments(tmp_path, "undisturbed", "--max-bad", "1"))
    words = arguments(tmp_path, "killed", "--max-bad", "1", "-q")
    for point in (*POINTS, *END_POINTS):
        victim = "driver" if point.endswith("-put") else "self"
        fault = f"point={point},times=1,victim={victim},log={tmp_path / point}"
        run_cli(*words, env={"TOKENSHARDS_FAULT": fault}, expect=-signal.SIGKILL)
        assert not (tmp_path / "killed" / "manifest.json").exists()
    call_cli(*words)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    assert shards_of(killed) == shards_of(undisturbed) and agreement(killed) == COUNT - 1
    assert quarantine_of(killed) == quarantine_of(undisturbed) == {"class_1/001.png": "bad_mask"}
    assert open_dataset(str(killed)).manifest.mask == open_dataset(str(undisturbed)).manifest.mask
    assert verify_dataset(Store(str(killed))).ok


def test_masks_that_are_gone_are_an_outage_and_a_wrong_folder_is_an_error(made: Path, tmp_path: Path) -> None:
    for name in ("images", "masks", "pixels.tok"):
        shutil.copytree(made / name, tmp_path / name)
    fault = {"TOKENSHARDS_FAULT": f"point=after-data-put,times=1,victim=driver,log={tmp_path / 'log'}"}
    run_cli(*arguments(tmp_path, "out"), env=fault, expect=-signal.SIGKILL)
    write_masked(tmp_path / "other", 3, suffix="x")
    _, said = call_cli(*arguments(tmp_path, "out", masks="other/masks"), expect=2)
    assert "planned masks exists there, such as class_" in said and "Give their present place with --masks" in said
    (tmp_path / "masks").rename(tmp_path / "moved")
    _, said = call_cli(*arguments(tmp_path, "out", masks=""), expect=2)
    assert "planned masks exists there" in said
    call_cli(*arguments(tmp_path, "out", masks="moved"))
    assert agreement(tmp_path / "out") == COUNT and quarantine_of(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--mask-ignore", "3"), "--mask-ignore (3,) (the plan has ())"),
        (("--mask-bits", "16"), "--mask-bits 16 (the plan has 8)"),
        (("--mask-column", "x"), "--mask-column"),
    ],
)
def test_options_that_contradict_the_plan_are_refused(made: Path, more: tuple[str, ...], words: str) -> None:
    masks = "" if more[0] == "--mask-column" else "masks"
    assert words in call_cli(*arguments(made, "out", *more, masks=masks), expect=2)[1]
    assert "already complete" in call_cli(*arguments(made, "out", "--mask-bits", "8"))[0]


def test_a_plan_without_masks_takes_none_later(made: Path) -> None:
    call_cli(*arguments(made, "none", masks=""))
    assert "(the plan has no masks)" in call_cli(*arguments(made, "none"), expect=2)[1]


def test_a_stored_mask_that_is_not_that_of_the_source_is_found(made: Path, tmp_path: Path) -> None:
    """Only --re-encode can find it: the file of the mask changed without a trace in its size and age."""
    for name in ("images", "pixels.tok"):
        shutil.copytree(made / name, tmp_path / name)
    for number in range(COUNT):
        path = tmp_path / "masks" / f"class_{number % 2}" / f"{number:03d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn_mask(number)).save(path)
    call_cli(*arguments(tmp_path, "out"))
    assert call_json("verify", str(tmp_path / "out"), "--re-encode", "99")["re_encoded"]["masks"] == COUNT
    path = tmp_path / "masks" / "class_1" / "003.bmp"
    age = path.stat().st_mtime_ns
    Image.fromarray(drawn_mask(4)).save(path)
    os.utime(path, ns=(age, age))
    out, _ = call_cli("verify", str(tmp_path / "out"), "--re-encode", "99", expect=1)
    assert f"{COUNT} masks made again: 1 differs" in out and "class_1/003.png: " in out and "of 576 pixels of the mask differ" in out
    found = call_json("verify", str(tmp_path / "out"), "--re-encode", "99", expect=1)["re_encoded"]
    assert not found["ok"] and (found["masks_different"], found["rows_different"]) == (1, 0)


def test_damage_to_masks_is_found_and_repaired(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    store = Store(str(tmp_path / "out"))
    path = next((tmp_path / "out" / "shards").iterdir())
    reader = ShardReader.open(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    chunk = next(group.column(place) for place in range(group.num_columns) if group.column(place).path_in_schema == "mask.list.element")
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(bytes(data))
    assert reader.mask is not None and not verify_dataset(store).ok
    assert str(path.name) in call_cli("verify", str(tmp_path / "out"), expect=1)[0]
    call_cli("repair", str(tmp_path / "out"), "--apply")
    words = arguments(made, "out")
    words[2] = str(tmp_path / "out")
    call_cli(*words)
    assert shards_of(tmp_path / "out") == shards_of(made / "out") and verify_dataset(store).ok


def test_counts_that_a_commit_or_a_manifest_states_wrongly_are_found(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    store = Store(str(tmp_path / "out"))
    manifest = load_manifest(store)
    assert manifest.mask is not None
    publish_manifest(store, replace(manifest, mask=manifest.mask.with_counts(0, [[2, 1]])))
    problems = verify_dataset(store).problems
    assert [problem.kind for problem in problems] == ["masks"]
    publish_manifest(store, manifest)
    assert verify_dataset(store).ok
    plan_id, entry = manifest.plan_ids[0], manifest.shards[0]
    commit, _ = read_commit(store, plan_id, entry.shard)
    store.write(f"commits/{plan_id}/{entry.shard:08d}.json", replace(commit, masked_rows=commit.masked_rows - 1).to_bytes())
    assert any("rows with a mask; its commit says" in problem.detail for problem in verify_dataset(store).problems)


def test_what_reads_a_dataset_shows_its_masks(made: Path, tmp_path: Path) -> None:
    inspected = call_json("inspect", str(made / "out"))
    assert inspected["mask"]["images"] == COUNT and [name for name in inspected["columns"] if name["name"] == MASK]
    assert "pixels of each class" in call_cli("inspect", str(made / "out"))[0]
    assert call_json("status", str(made / "out"))["masked_rows"] == COUNT
    card = (made / "out" / "README.md").read_text()
    assert f"| masks | of {COUNT} rows, 24 x 24 pixels, classes 0 to 3, 255 for none |" in card and "image-segmentation" in card
    call_cli("publish", str(made / "out"), str(tmp_path / "public"))
    assert agreement(tmp_path / "public") == COUNT and f"{COUNT} of them with a mask" in call_cli("verify", str(tmp_path / "public"))[0]
    call_cli("export", "webdataset", str(made / "out"), str(tmp_path / "tars"))
    rows = list(open_dataset(str(made / "out")))
    with tarfile.open(tmp_path / "tars" / "00000.tar") as archive:
        for number, row in enumerate(rows):
            member: Any = archive.extractfile(f"{number:08d}.mask.png")
            np.testing.assert_array_equal(np.asarray(Image.open(member)), row.mask_HW)


def test_preview_draws_masks_beside_images(made: Path, tmp_path: Path) -> None:
    sizes = []
    for name, more in (("out", ()), ("plain", ()), ("out", ("--source", str(made / "images")))):
        if not (made / name).exists():
            call_cli(*arguments(made, name, masks=""))
        call_cli("preview", str(made / name), "--to", str(tmp_path / "p.png"), "-n", "4", *more)
        with Image.open(tmp_path / "p.png") as drawn:
            sizes.append(drawn.size)
            colours = {tuple(colour) for colour in np.asarray(drawn).reshape(-1, 3)[::7].tolist()}
        assert ((243, 195, 0) in colours) == (name == "out"), "the colour of class 1"
    assert sizes[0][0] > sizes[1][0] and sizes[2][0] > sizes[0][0]


def test_plan_says_what_is_understood_and_writes_nothing(made: Path) -> None:
    words = ["plan", str(made / "images"), str(made / "never"), "--masks", str(made / "masks"), "--tokenizer", str(made / "pixels.tok")]
    understood = call_json(*words)["understood"]["mask_rule"]
    assert understood.startswith(f"folder {made / 'masks'}: {COUNT} of {COUNT} images have one, such as class_")
    assert f"stored as uint8 (4 class numbers from 0 to 3 in {COUNT} masks looked at; else --mask-bits 16)" in understood
    assert not (made / "never").exists()


def test_the_functions_take_the_options_of_masks(made: Path) -> None:
    report = tokenshards.tokenize(
        made / "images", made / "called", tokenizer=made / "pixels.tok", masks=made / "masks", mask_ignore=[3], mask_map={"2": "1"}
    )
    dataset = tokenshards.open_dataset(made / "called")
    values = set(np.unique(np.concatenate([batch.masks_BHW for batch in dataset.batches(64, masks=True)])).tolist())
    assert values == {0, 1, 255} and report is not None and dataset.mask_classes == 2
    assert os.path.exists(made / "called" / "manifest.json")


def test_the_splits_of_a_source_have_masks_of_one_format(made: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        shutil.copytree(made / "images", tmp_path / "images" / split)
    for split in ("train", "val"):
        shutil.copytree(made / "masks", tmp_path / "masks" / split)
    deep = tmp_path / "masks" / "train" / "class_0" / "000.png"
    Image.fromarray(drawn_mask(0).astype(np.uint16) * 300).save(deep)
    words = [
        "tokenize",
        str(tmp_path / "images"),
        str(tmp_path / "out"),
        "--tokenizer",
        str(made / "pixels.tok"),
        "--workers",
        "1",
        "--splits",
    ]
    call_cli(*words, "--masks", str(tmp_path / "masks"), "--yes")
    found = [open_dataset(str(tmp_path / "out" / split)) for split in ("train", "val", "test")]
    assert [dataset.mask.dtype for dataset in found if dataset.mask] == ["uint16"] * 3
    assert [dataset.manifest.mask.images for dataset in found if dataset.manifest.mask] == [COUNT, COUNT, 0]
    joined = tokenshards.open_dataset([str(tmp_path / "out" / split) for split in ("train", "val", "test")])
    assert len(joined) == 3 * COUNT and joined.mask_classes > 255
    assert "rows checked, 0 of them with a mask" in call_cli("verify", str(tmp_path / "out" / "test"))[0]
