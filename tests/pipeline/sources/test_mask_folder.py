"""Which file of a folder of masks belongs to an image, and what is understood of masks at planning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.masks import drawn_mask, png, write_masked, write_table, write_tar
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError
from tokenshards.pipeline.mask_rules import MaskRules
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources import ImageSource, open_source
from tokenshards.pipeline.sources.mask_values import plan_of_masks, settle_masks
from tokenshards.pipeline.storage.store import Store


def write(root: Path, names: Sequence[str], pixels: np.ndarray | None = None) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(drawn_mask(number) if pixels is None else pixels))


def listed(source: Path | str, masks: Path | str, **more: Any) -> tuple[ImageSource, dict[str, str | None]]:
    """Return the listed source, and the mask of each image."""
    rules = {name: more.pop(name) for name in list(more) if name.startswith("mask_")}
    opened = open_source(str(source), SourceConfig(masks=str(masks), mask_rules=MaskRules(**rules), yes=True, **more))
    rows = list(opened.list_rows())
    return opened, {row.sample_id: row.mask_path for row in rows}


def settled(config: SourceConfig, source: Path) -> ImageSource:
    opened = open_source(str(source), config)
    rows: list[PlanRow] = list(opened.list_rows())
    settle_masks(opened, rows)
    return opened


def test_the_path_of_the_image_with_another_extension(tmp_path: Path) -> None:
    write(tmp_path / "i", ["a/1.png", "a/2.jpg.png", "b/c/3.jpeg", "4.webp"])
    write(tmp_path / "m", ["a/1.png", "a/2.jpg.tif", "b/c/3.bmp", "4.png", "readme.txt", ".hidden/5.png"])
    _, found = listed(tmp_path / "i", tmp_path / "m")
    assert found == {"a/1.png": "a/1.png", "a/2.jpg.png": "a/2.jpg.tif", "b/c/3.jpeg": "b/c/3.bmp", "4.webp": "4.png"}


def test_a_lossless_file_is_taken_before_others_of_its_name(tmp_path: Path) -> None:
    write(tmp_path / "i", ["1.png", "2.png"])
    write(tmp_path / "m", ["1.jpg", "1.png", "2.jpg"])
    source, found = listed(tmp_path / "i", tmp_path / "m")
    assert found == {"1.png": "1.png", "2.png": "2.jpg"} and not source.summary.notes[1:]


def test_masks_that_mirror_the_folder_of_a_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / "images" / split, ["cat/1.png", "dog/2.png"])
        write(tmp_path / "masks" / split, ["cat/1.png", "dog/2.png"])
    source, found = listed(tmp_path / "images", tmp_path / "masks", split="train")
    assert found == {"train/cat/1.png": "train/cat/1.png", "train/dog/2.png": "train/dog/2.png"}
    assert not [note for note in source.summary.notes if "no image" in note], "masks of the other split are none of this dataset"
    source, _ = listed(tmp_path / "images", tmp_path / "masks", split="all")
    assert "4 of 4 images have one" in source.summary.mask_rule


def test_a_split_without_masks_is_taken_where_the_user_says_so(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "images" / split, ["1.png", "2.png"])
    write(tmp_path / "masks" / "train", ["1.png", "2.png"])
    config = SourceConfig(masks=str(tmp_path / "masks"), split="test")
    with pytest.raises(SourceError, match="none of 2 images has a mask there; .*; --yes takes the split test without masks"):
        list(open_source(str(tmp_path / "images"), config).list_rows())
    source, found = listed(tmp_path / "images", tmp_path / "masks", split="test")
    assert found == {"test/1.png": None, "test/2.png": None} and source.summary.mask_rule.endswith(": 0 of 2 images have one")
    settle_masks(source, list(source.list_rows()))
    assert "stored as uint8, as nothing was seen" in source.summary.mask_rule


@pytest.mark.parametrize("images", ["images", "leftImg8bit/deep"])
def test_leading_folders_that_masks_lack_are_found_and_recorded(images: str, tmp_path: Path) -> None:
    write(tmp_path / images, ["x/1.png", "y/2.png"])
    write(tmp_path / "masks", ["x/1.png", "y/2.png"])
    source, found = listed(tmp_path, tmp_path / "masks")
    depth = images.count("/") + 1
    assert found == {f"{images}/x/1.png": "x/1.png", f"{images}/y/2.png": "y/2.png"}
    assert source.config.mask_rules.mask_below == depth and source.config.masks == "masks"
    assert source.summary.left_out["of the masks"].count == 2
    again = open_source(str(tmp_path), replace(SourceConfig(masks="masks").with_planned(source.config.planned()), masks="masks"))
    assert {row.sample_id: row.mask_path for row in again.list_rows()} == found


def test_suffixes_are_taken_and_proposed(tmp_path: Path) -> None:
    write_masked(tmp_path, 6, suffix="_mask")
    with pytest.raises(
        SourceError, match=r"of 6 images looked at none has a mask of its own name, .*expected --mask-suffix _mask, which 6 have"
    ):
        listed(tmp_path / "images", tmp_path / "masks")
    _, found = listed(tmp_path / "images", tmp_path / "masks", mask_suffix="_mask")
    assert found["class_1/003.png"] == "class_1/003_mask.png" and None not in found.values()
    with pytest.raises(SourceError, match=r"and the suffix _seg, such as class_.*expected --mask-suffix _mask"):
        listed(tmp_path / "images", tmp_path / "masks", mask_suffix="_seg")


def test_a_suffix_that_most_have_is_proposed_where_few_fit_without(tmp_path: Path) -> None:
    write_masked(tmp_path, 6, suffix="_seg")
    write(tmp_path / "masks", ["class_0/000.png"])
    source, _ = listed(tmp_path / "images", tmp_path / "masks")
    assert "few of the first 6 images have a mask of their own name; expected --mask-suffix _seg, which 6 have?" in source.summary.notes
    write_masked(tmp_path / "bare", 6)
    with pytest.raises(SourceError, match=r"and the suffix _m, .*expected no --mask-suffix, as 6 fit without"):
        listed(tmp_path / "bare" / "images", tmp_path / "bare" / "masks", mask_suffix="_m")


def test_masks_of_cityscapes_have_a_suffix_for_that_of_the_image(tmp_path: Path) -> None:
    for kind, folder in (("leftImg8bit", "leftImg8bit"), ("gtFine_labelIds", "gtFine"), ("gtFine_color", "gtFine")):
        write(tmp_path / folder, [f"train/aachen/aachen_{number}_{kind}.png" for number in range(3)])
    with pytest.raises(SourceError, match="expected --mask-suffix _gtFine_labelIds, which 3 have"):
        listed(tmp_path / "leftImg8bit", tmp_path / "gtFine")
    _, found = listed(tmp_path / "leftImg8bit", tmp_path / "gtFine", mask_suffix="_gtFine_labelIds")
    assert found["train/aachen/aachen_1_leftImg8bit.png"] == "train/aachen/aachen_1_gtFine_labelIds.png"


def test_masks_among_the_images_need_a_suffix(tmp_path: Path) -> None:
    write(tmp_path, ["a/1.png", "a/1_mask.png", "b/2.png", "b/2_mask.png"])
    with pytest.raises(SourceError, match=r"--masks is SRC itself, .*; expected --mask-suffix too, such as _mask"):
        listed(tmp_path, tmp_path)
    source, found = listed(tmp_path, tmp_path, mask_suffix="_mask")
    assert found == {"a/1.png": "a/1_mask.png", "b/2.png": "b/2_mask.png"} and source.config.masks == "."


def test_a_relative_folder_begins_here_or_else_at_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_masked(tmp_path / "src", 2, images="images", masks="masks")
    monkeypatch.chdir(tmp_path)
    source, found = listed("src", "src/masks")
    assert source.config.masks == "masks" and len(found) == 2
    assert listed("src", "masks")[1] == found
    source, _ = listed("src/images", "src/masks")
    assert source.config.masks == str(tmp_path / "src" / "masks")


@pytest.mark.parametrize("masks", ["nowhere", "empty", "file.png"])
def test_a_folder_without_masks_is_an_error_before_work(masks: str, tmp_path: Path) -> None:
    write(tmp_path / "i", ["a/1.png"])
    (tmp_path / "empty").mkdir()
    write(tmp_path, ["file.png"])
    with pytest.raises(SourceError, match=rf"--masks .*{masks}"):
        listed(tmp_path / "i", tmp_path / masks)


def test_no_image_with_a_mask_is_an_error_that_shows_both_sides(tmp_path: Path) -> None:
    write(tmp_path / "i", ["a/1.png"])
    write(tmp_path / "m", ["z/9.png"])
    with pytest.raises(SourceError, match=r"none of 1 image has a mask there; .*Images: a/1\.png\. Masks: z/9\.png\."):
        listed(tmp_path / "i", tmp_path / "m")


def test_what_other_sources_cannot_use_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "i", ["a/1.png"])
    write_table(tmp_path / "t.parquet", 3)
    write_tar(tmp_path / "s.tar", 3)
    with pytest.raises(SourceError, match=r"--mask-column was given as 'm': it has no columns.*Give --masks FOLDER"):
        open_source(str(tmp_path / "i"), SourceConfig(mask_rules=MaskRules(mask_column="m")))
    for name, words in (("t.parquet", "--mask-column NAME"), ("s.tar", "--mask-column seg.png takes it")):
        with pytest.raises(SourceError, match=f"--masks was given as .*{words}"):
            open_source(str(tmp_path / name), SourceConfig(masks=str(tmp_path / "i")))
    with pytest.raises(
        SourceError, match=r"--mask-column names 'seg'; expected a column of the table; the columns are image \(bytes\), mask"
    ):
        settled(SourceConfig(mask_rules=MaskRules(mask_column="seg")), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"--mask-column names 'label' of type int64; expected image bytes"):
        settled(SourceConfig(mask_rules=MaskRules(mask_column="label")), tmp_path / "t.parquet")
    with pytest.raises(
        SourceError, match=r"none of all 3 samples has the member that --mask-column mask\.png names; they have .*\.seg\.png"
    ):
        settled(SourceConfig(mask_rules=MaskRules(mask_column="mask.png")), tmp_path / "s.tar")


def test_a_member_that_looks_like_a_mask_is_proposed(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", 3)
    opened = open_source(str(tmp_path / "s.tar"), SourceConfig())
    list(opened.list_rows())
    assert "--mask-column seg.png takes it as the mask of the image" in opened.summary.doubts[0].option
    source = settled(SourceConfig(mask_rules=MaskRules(mask_column=".SEG.png")), tmp_path / "s.tar")
    assert not source.summary.doubts and source.summary.mask_rule.startswith(
        "member .seg.png of a sample, 3 of all 3 samples; stored as uint8"
    )


def test_tables_without_a_mask_in_the_column_are_an_error(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", 5, without=(0, 1, 2, 3, 4))
    config = SourceConfig(mask_rules=MaskRules(mask_column="mask"))
    with pytest.raises(SourceError, match=r"none of 5 images that were looked at has a mask \(column mask\)"):
        settled(config, tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("file,mask\na.png,\nb.png,\n")
    with pytest.raises(SourceError, match=r"no row has a mask in column mask; expected the path or URL"):
        settled(config, tmp_path / "t.csv")


VALUES = {"small": (0, 1, 254), "void": (0, 5, 255), "many": (0, 300), "many and void": (0, 300, 255), "ignored": (0, 9, 65535)}


@pytest.mark.parametrize(
    ("values", "more", "dtype", "words"),
    [
        ("small", {}, "uint8", "3 class numbers from 0 to 254 in 2 masks looked at; else --mask-bits 16"),
        ("void", {}, "uint8", "2 class numbers from 0 to 5 in 2 masks looked at, 255 without a class"),
        ("many", {}, "uint16", "2 class numbers from 0 to 300 in 2 masks looked at; else --mask-bits 8"),
        ("many and void", {}, "uint16", "3 class numbers from 0 to 300"),
        ("ignored", {}, "uint16", "2 class numbers from 0 to 9 in 2 masks looked at, 65,535 without a class"),
        ("ignored", {"mask_ignore": (65535,)}, "uint8", "2 class numbers from 0 to 9 in 2 masks looked at, 65,535 without a class"),
        ("many", {"mask_map": ((300, 3),)}, "uint8", "1 class number from 0 to 0"),
        ("small", {"mask_bits": 16}, "uint16", "3 class numbers from 0 to 254"),
        ("many", {"mask_bits": 8}, "uint8", "1 class number from 0 to 0"),
    ],
)
def test_bits_are_settled_by_what_a_look_shows(values: str, more: dict[str, Any], dtype: str, words: str, tmp_path: Path) -> None:
    pixels = np.resize(np.array(VALUES[values], np.uint16), (8, 8))
    write(tmp_path / "i", ["1.png", "2.png"])
    write(tmp_path / "m", ["1.png", "2.png"], pixels)
    source = settled(SourceConfig(masks=str(tmp_path / "m"), mask_rules=MaskRules(**more)), tmp_path / "i")
    assert f"stored as {dtype} ({words}" in source.summary.mask_rule
    plan = plan_of_masks(source, 24)
    assert plan is not None and (plan["dtype"], plan["ignore"], plan["kind"]) == (dtype, 255 if dtype == "uint8" else 65535, "folder")
    doubts = [doubt.option for doubt in source.summary.doubts]
    assert (values == "many and void") == any(option.startswith("--mask-ignore 255") for option in doubts)


def test_masks_of_black_and_white_are_a_grave_doubt(tmp_path: Path) -> None:
    write(tmp_path / "i", ["1.png"])
    write(tmp_path / "m", ["1.png"], np.resize(np.array([0, 255], np.uint8), (8, 8)))
    masks = str(tmp_path / "m")
    (doubt,) = settled(SourceConfig(masks=masks), tmp_path / "i").summary.doubts
    assert doubt.grave and doubt.option.startswith("--mask-map 255=1 makes it the class 1")
    for rules in (MaskRules(mask_map=((255, 1),)), MaskRules(mask_ignore=(255,))):
        assert not settled(SourceConfig(masks=masks, mask_rules=rules), tmp_path / "i").summary.doubts


def test_a_kind_of_mask_that_cannot_be_used_stops_before_work(tmp_path: Path) -> None:
    write(tmp_path / "i", ["1.png", "2.png"])
    write(tmp_path / "m", ["1.png", "2.png"], np.random.default_rng(0).integers(0, 9, (8, 8, 3)).astype(np.uint8))
    with pytest.raises(
        SourceError, match=r"none of 2 masks that were looked at can be used \(folder .*such as .\.png: the mask is a colour image"
    ):
        settled(SourceConfig(masks=str(tmp_path / "m")), tmp_path / "i")


def test_masks_in_another_store_are_found_from_the_source(tmp_path: Path) -> None:
    write(tmp_path / "i", ["a/1.png"])
    store = Store("memory://masks-elsewhere")
    store.write("a/1.png", png(drawn_mask(0)))
    source, found = listed(tmp_path / "i", "memory://masks-elsewhere")
    assert found == {"a/1.png": "a/1.png"} and source.config.masks == "memory://masks-elsewhere"
    settle_masks(source, [])
    assert "stored as uint8" in source.summary.mask_rule
