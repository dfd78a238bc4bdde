"""Names of splits, and what a source does with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.sources.test_folder import listed, put
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.splits import asked_split, known_split, split_at, split_of_file


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val2017", "val"),
        ("valid", "val"),
        ("validation", "val"),
        ("dev", "val"),
        ("test1", "test"),
        ("train_images", "train"),
        ("images-val", "val"),
        ("split=test", "test"),
        ("train-00000-of-00010", "train"),
        ("trainer", None),
        ("bullet_train", None),
        ("test_tube", None),
        ("train_val", None),
        ("devon", None),
        ("00000", None),
    ],
)
def test_names_of_folders(name: str, split: str | None) -> None:
    assert known_split(name) == split


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00010.parquet", "train"),
        ("data/validation-00000-of-00001-a09b74b3ef9c3b56.parquet", "val"),
        ("imagenet-val-000007.tar", "val"),
        ("test/00001.tar", "test"),
        ("train/validation.tar", "train"),
        ("00001.tar", None),
        ("train-val.tar", None),
        ("n01440764.tar", None),
    ],
)
def test_names_of_tars_and_tables(path: str, split: str | None) -> None:
    assert split_of_file(path) == split


def test_a_split_of_another_name_is_known_where_the_user_names_it() -> None:
    assert asked_split("Validation") == "val" and asked_split(None) is None and asked_split("Extra") == "extra"
    assert split_at("svhn/Extra/1", "extra") == ("extra", 1) and split_of_file("extra-000.tar", "extra") == "extra"
    for text in ("", "a/b"):
        with pytest.raises(SourceError, match="--split is"):
            asked_split(text)


SPLITS = ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "test/dog/4.png")


def test_labels_are_the_folders_below_splits_and_all_splits_are_counted(tmp_path: Path) -> None:
    put(tmp_path, *SPLITS)
    source = open_source(str(tmp_path), SourceConfig())
    assert [listed(source)[name].label for name in SPLITS] == ["cat", "dog", "cat", "dog"]
    assert dict(source.summary.splits) == {"train": 2, "val": 1, "test": 1} and source.config.split == "all"


def test_the_first_folder_stays_the_class_where_it_is_asked_for_or_only_one_of_several_is_a_split(tmp_path: Path) -> None:
    put(tmp_path, *SPLITS)
    asked = listed(open_source(str(tmp_path), SourceConfig(label_from="first")))
    assert {row.label for row in asked.values()} == {"train", "val", "test"}
    put(tmp_path / "other", "dev/1.png", "cat/2.png", "dog/3.png")
    source = open_source(str(tmp_path / "other"), SourceConfig())
    assert {row.label for row in listed(source).values()} == {"dev", "cat", "dog"} and source.config.split is None


def test_one_split_is_taken_and_the_others_are_counted(tmp_path: Path) -> None:
    put(tmp_path, *SPLITS, "loose.png")
    for name in ("val", "validation"):
        source = open_source(str(tmp_path), SourceConfig(split=name))
        assert {key: row.label for key, row in listed(source).items()} == {"val/cat/3.png": "cat"}
        assert {kind: found.count for kind, found in source.summary.left_out.items()} == {
            "of the split train": 2,
            "of the split test": 1,
            "of no split": 1,
        }
    with pytest.raises(SourceError, match="no image is of the split 'extra'; expected .*seen: .*train"):
        listed(open_source(str(tmp_path), SourceConfig(split="extra")))


def test_rules_of_a_plan_are_not_settled_anew(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png")
    source = open_source(str(tmp_path), SourceConfig())
    listed(source)
    planned = SourceConfig().with_planned(source.config.planned())
    (tmp_path / "cat").rename(tmp_path / "train")
    (row,) = listed(open_source(str(tmp_path), planned)).values()
    assert row.label == "train"
    settled = open_source(str(tmp_path), SourceConfig())
    listed(settled)
    again = open_source(str(tmp_path), SourceConfig().with_planned(settled.config.planned()))
    assert again.config.split == "all" and [row.label for row in again.list_rows()] == [None]


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_tars_and_tables_of_one_split(ending: str, tmp_path: Path) -> None:
    from tests.pipeline.sources.test_tar import tar_bytes

    for name in ("data/train-00000", "data/test-00000", "data/test-00001"):
        put(tmp_path, f"{name}.{ending}")
        (tmp_path / f"{name}.{ending}").write_bytes(tar_bytes([("1.png", b"x")]))
    taken = open_source(f"{tmp_path}/data/*.{ending}", SourceConfig(split="test"))
    assert dict(taken.summary.splits) == {"test": 2, "train": 1} and taken.summary.left_out["of another split"].count == 1
    assert [info.path for info in getattr(taken, "files", ())] == [f"test-0000{n}.{ending}" for n in range(2)]
    put(tmp_path, f"data/devkit.{ending}")
    taken = open_source(f"{tmp_path}/data/*.{ending}", SourceConfig(split="test"))
    assert taken.summary.left_out["of no split"].count == 1 and taken.summary.left_out["of another split"].count == 1
    (tmp_path / f"data/devkit.{ending}").unlink()
    with pytest.raises(SourceError, match="none of 3 files is of the split 'val'.*seen: test, train"):
        open_source(str(tmp_path), SourceConfig(split="val"))
