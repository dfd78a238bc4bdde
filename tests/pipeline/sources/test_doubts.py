"""Doubts: what is seen in real folders, which option takes a doubt away, and what stops."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather

from tests.pipeline.sources.test_folder import PNG, put
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.conversion.understand import understand
from tokenshards.pipeline.errors import DoubtError, SourceError
from tokenshards.pipeline.sources import SourceSummary, open_source
from tokenshards.pipeline.sources.doubts import new_classes, null_column, several_images
from tokenshards.pipeline.sources.summary import Doubt
from tokenshards.pipeline.storage.fsspec_requests import remote_info
from tokenshards.pipeline.storage.store import ObjectInfo, Store


def doubts(root: Path, config: SourceConfig | None = None) -> list[Doubt]:
    """Return the doubts of a folder, also where they would stop."""
    asked = config or SourceConfig()
    source = open_source(str(root), asked)
    list(source.list_rows())
    try:
        understand(source, asked, lambda line: None)
    except DoubtError:
        assert not asked.yes
    return source.summary.doubts


def sentences(root: Path, config: SourceConfig | None = None) -> str:
    return "\n".join(doubt.text() for doubt in doubts(root, config))


def test_two_classes_of_several_images_are_in_no_doubt(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{n}.png" for name in ("cat", "dog") for n in range(3)))
    assert doubts(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "said", "settled"),
    [
        (("Birds/owl/1.png", "Birds/crow/2.png"), "one class, 'Birds', holds all 2 labelled inputs [--label-from parent", "parent"),
        (("images/owl/1.png", "images/crow/2.png"), "one class, 'images', holds all 2 labelled inputs [--label-from parent", "parent"),
        (("images/1.png", "images/2.png"), "one class, 'images', holds all 2 labelled inputs [--label-from file:TABLE", "none"),
        (("00000/1.png", "00001/2.png"), "all labels look like numbers of shards, such as '00000' [--label-from none", "none"),
        (("2024-05-01/1.png", "2024-05-02/2.png"), "all labels look like dates", "none"),
        (("20240501/1.png", "20240502/2.png"), "all labels look like dates", "none"),
        (("0/1.png", "1/2.png"), "all labels look like numbers, such as", "first"),
        (("train/1.png", "other/2.png"), "labels are names of splits, such as 'train' [--split NAME", "first"),
    ],
)
def test_labels_that_are_no_classes(names: tuple[str, ...], said: str, settled: str, tmp_path: Path) -> None:
    put(tmp_path, *names)
    (doubt,) = doubts(tmp_path)
    assert said in doubt.text() and not doubt.grave
    assert doubts(tmp_path, SourceConfig(label_from=settled)) == []
    assert doubts(tmp_path, SourceConfig(no_labels=True)) == []


def test_classes_that_differ_in_case_spaces_or_unicode_form_only(tmp_path: Path) -> None:
    put(tmp_path, "Cat/1.png", "cat/2.png", "dog/3.png")
    assert "'Cat'" in sentences(tmp_path) and "differ in case, spaces or Unicode form only" in sentences(tmp_path)
    put(tmp_path / "u", "caf\u00e9/1.png", "cafe\u0301/2.png", "a b/3.png", "a  b/4.png")
    assert "and 1 more such pairs" in sentences(tmp_path / "u")


def test_many_classes_are_a_note_and_from_100_images_on_they_stop(tmp_path: Path) -> None:
    put(tmp_path, *(f"c{n:02}x/1.png" for n in range(20)))
    (few,) = doubts(tmp_path)
    assert "20 classes for 20 labelled inputs: nearly as many classes as images" in few.sentence and not few.grave
    put(tmp_path, *(f"d{n:02}x/1.png" for n in range(80)))
    (grave,) = doubts(tmp_path)
    assert grave.grave
    source = open_source(str(tmp_path), SourceConfig())
    list(source.list_rows())
    told: list[str] = []
    with pytest.raises(DoubtError, match=r"(?s)--yes to go on.*doubt 1: 100 classes.*--no-labels") as caught:
        understand(source, SourceConfig(), told.append)
    assert caught.value.exit_code == 2 and caught.value.understood["doubts"][0]["grave"] is True
    assert any(line.startswith("doubt 1") for line in told), "the table is said before the stop"
    for settled in (SourceConfig(yes=True), SourceConfig(label_from="first")):
        source = open_source(str(tmp_path), settled)
        list(source.list_rows())
        understand(source, settled, told.append)
    put(tmp_path, *(f"e/{n}.png" for n in range(120)))
    assert doubts(tmp_path) == []


def test_mixed_splits_stop_unless_an_option_settles_them(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png")
    (doubt,) = doubts(tmp_path)
    assert doubt.grave and "2 splits, train (2), val (2)" in doubt.sentence and "--split train takes one, --splits" in doubt.option
    for settled in (SourceConfig(split="train"), SourceConfig(split="all"), SourceConfig(label_from="first")):
        assert not any(doubt.grave for doubt in doubts(tmp_path, settled))
    put(tmp_path / "deep", "Data/train/cat/1.png", "Data/val/cat/3.png")
    assert any(doubt.grave for doubt in doubts(tmp_path / "deep"))


def test_two_of_many_classes_with_names_of_splits_do_not_stop(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{n}.png" for name in ("test", "dev", "cat", "dog", "cow", "owl", "bee") for n in range(2)))
    found = doubts(tmp_path)
    assert not any(doubt.grave for doubt in found)


def test_tables_beside_images_are_named_with_the_option(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/1.png", *(f"cat/{n}.txt" for n in range(9)))
    for name in ("train.csv", "README.txt"):
        (tmp_path / name).write_text("x")
    (doubt,) = doubts(tmp_path)
    assert doubt.sentence.startswith("train.csv lies beside the images") and doubt.option == "--label-from file:train.csv"
    assert doubts(tmp_path, SourceConfig(label_from="first")) == doubts(tmp_path, SourceConfig(no_labels=True)) == []


def test_the_likeliest_tables_of_tiny_imagenet_and_of_a_competition_are_named_first(tmp_path: Path) -> None:
    put(tmp_path, "train/n01/images/1.png", "train/n02/images/2.png", "val/images/3.png", *(f"train/n0{n}/boxes.txt" for n in range(9)))
    (tmp_path / "val/val_annotations.txt").write_text("3.png\tn01\t0\t0\n")
    (tmp_path / "wnids.txt").write_text("n01\nn02\n")
    (tmp_path / "words.txt").write_text("n01\tentity\nn02\tthing\n")
    assert "val/val_annotations.txt, wnids.txt, words.txt lie beside" in sentences(tmp_path)
    assert "one of the classes is 'images' (1), the name of a folder of any images" in sentences(tmp_path)
    put(tmp_path / "k", *(f"train/{n}.png" for n in range(1, 50)), "sample_submission.csv")
    for name in ("labels.csv", "stats.csv"):
        (tmp_path / "k" / name).write_text("id,breed\n1,owl\n2,crow\n" if name == "labels.csv" else "a,b,c\n1,2,3\n")
    (tmp_path / "k" / "annotations.json").write_text('{"images": [], "annotations": []}')
    assert "labels.csv lies beside the images" in sentences(tmp_path / "k")
    feather.write_feather(pa.table({"id": ["1", "2"], "breed": ["owl", "crow"]}), tmp_path / "k" / "labels.feather")
    (tmp_path / "k" / "labels.csv").unlink()
    assert "labels.feather lies beside the images" in sentences(tmp_path / "k")
    put(tmp_path / "yolo", *(f"images/{n}.png" for n in range(3)), *(f"labels/{n}.txt" for n in range(3)))
    assert "file:labels" not in sentences(tmp_path / "yolo"), "nobody can read these as labels"


def test_the_tables_of_img2dataset_are_proposed_together_and_its_captions_are_named(tmp_path: Path) -> None:
    put(tmp_path, *(f"00000/{n:09}.{ending}" for n in range(12) for ending in ("jpg", "txt", "json")))
    put(tmp_path, *(f"{n:05}{ending}" for n in range(5) for ending in (".parquet", "_stats.json")))
    text = sentences(tmp_path)
    assert "00000.parquet, 00001.parquet, 00002.parquet lie beside" in text and "stats.json" not in text
    assert "[--label-from 'file:*.parquet', and --label COLUMN]" in text
    source = open_source(str(tmp_path), SourceConfig())
    list(source.list_rows())
    assert "12 .txt files lie beside the images; captions are read from tars only, as meta.caption" in source.summary.notes


def test_a_dataset_of_tokens_is_no_source(tmp_path: Path) -> None:
    put(tmp_path, "shards/shards-0123456789ab.parquet", "manifest.json")
    with pytest.raises(SourceError, match="is a dataset of tokens that tokenshards made .* expected images"):
        open_source(str(tmp_path), SourceConfig())


def test_tars_beside_images_stop_if_they_hold_more(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "b.tar").write_bytes(b"")
    (doubt,) = doubts(tmp_path)
    assert "1 tar or Parquet files beside the images are ignored" in doubt.sentence and not doubt.grave
    (tmp_path / "b.tar").write_bytes(bytes(9 * len(PNG)))
    (grave,) = doubts(tmp_path, SourceConfig(all_files=False, rules=2))
    assert grave.grave and "more bytes than the images" in grave.sentence


def test_hooks_for_tars_and_tables() -> None:
    assert several_images(3, "a.tar#1", ["left.jpg", "right.jpg"], lost=3).grave
    kept = several_images(3, "a.tar#1", ["left.jpg", "right.jpg"], lost=0)
    assert not kept.grave and "--image-member left.jpg" in kept.option
    assert null_column("label", 1, 3, "x") is None and null_column("label", 0, 0, "x") is None
    found = null_column("label", 2, 3, "--label NAME")
    assert found is not None and "null in 2 of 3 rows" in found.sentence


def test_a_summary_restarts_from_what_the_opening_found() -> None:
    summary = SourceSummary(noun="tar")
    summary.leave_out(".txt", "a.txt")
    first = summary.restarted()
    first.leave_out(".txt", "b.txt")
    first.doubts.append(Doubt(sentence="s", option="o"))
    again = first.restarted()
    assert again.left_out[".txt"].count == 1 and again.doubts == [] and again.noun == "tar"


def test_archived_objects_are_known_from_the_listing_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [remote_info("a", {"size": 1, "StorageClass": name}).archived for name in ("GLACIER", "DEEP_ARCHIVE", "STANDARD")] == [
        True,
        True,
        False,
    ]
    put(tmp_path, "cat/1.png", "dog/2.png")
    original = Store.list

    def archived(self: Store, prefix: str = "", **options: Any) -> Iterator[ObjectInfo]:
        for info in original(self, prefix, **options):
            info.archived = "cat" in info.path
            yield info

    monkeypatch.setattr(Store, "list", archived)
    (doubt,) = doubts(tmp_path)
    assert "1 object is archived (storage class GLACIER" in doubt.sentence and "cat/1.png" in doubt.sentence and not doubt.grave
    assert "--unreadable quarantine" in doubt.option
    assert doubts(tmp_path, SourceConfig(unreadable="quarantine")) == []


def test_the_table_says_rules_classes_and_what_is_left_out_with_examples(tmp_path: Path) -> None:
    put(tmp_path, *(f"c{n:02}/{k}.png" for n in range(12) for k in range(2)), "c00/extra.png", "loose.png", "._x.png")
    (tmp_path / "notes.md").write_text("x")
    source = open_source(str(tmp_path), SourceConfig())
    list(source.list_rows())
    told: list[str] = []
    assert understand(source, SourceConfig(), told.append) == told
    said = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in told}
    assert said["source"] == f"folder {tmp_path}" and said["inputs"].startswith("26 images (26 .png)")
    assert (said["id"], said["label"], said["metadata"]) == ("the path below the folder", "the first folder of the path", "none")
    assert said["classes"] == f"12: c00 (3), {', '.join(f'c{n:02} (2)' for n in range(1, 10))}, …; 1 without label"
    assert "1 .md such as notes.md" in said["ignored"] and "1 AppleDouble (._ files that macOS writes) such as ._x.png" in said["ignored"]
    value = source.summary.to_json()
    assert json.loads(json.dumps(value)) == value and value["class_count"] == 12 and len(value["classes"]) == 10
    assert value["left_out"][".md"] == {"count": 1, "example": "notes.md"} and value["unlabelled"] == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("train-00000-of-00002.tfrecord", "b.tfrecord"),
            "2 .tfrecord; TFRecord: such files are not read: write their images",
        ),
        (("x.npy", "y.mat", "z.mdb"), "NumPy and Matlab and LMDB: such files are not read"),
        (("1.jpg.gz", "2.jpg.gz"), "images that are compressed one by one are not read"),
        (("notes.md",), "found 1 .md; use --all-files to take every file"),
        (("a.xlsx/",), "a single file, .xlsx; spreadsheet: such files are not read"),
        (("a.jpg/",), "a single file; give its folder instead"),
    ],
)
def test_a_place_without_images_says_what_is_there(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    put(tmp_path, *(name.rstrip("/") for name in names))
    place = tmp_path / names[0].rstrip("/") if names[0].endswith("/") else tmp_path
    with pytest.raises(SourceError, match=re.escape(said)):
        open_source(str(place), SourceConfig())


def test_classes_that_the_class_table_of_the_tokenizer_lacks_are_said_before_the_work(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{n}.png" for name in ("cat", "emu") for n in range(3)))
    source = open_source(str(tmp_path), SourceConfig())
    list(source.list_rows())
    text = "\n".join(understand(source, SourceConfig(), lambda line: None, ("cat", "dog")))
    assert "the class 'emu' (3) is not in the class table of the training set: added at its end" in text
    for table, said in (((), None), (("cat", "emu"), None), ((1, 2), "2 classes, such as 'cat', are not .* which is every class")):
        doubt = new_classes(source.summary, table)
        assert (doubt is None) == (said is None) and (doubt is None or re.search(str(said), doubt.sentence))
