"""A table of labels beside the images, joined by name, for folders and tars."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline.sources.zoo import encoded, flat
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import ConfigError, SourceError
from tokenshards.pipeline.sources import open_source, read_slice, source_root
from tokenshards.pipeline.sources.label_table import _opened

PNG = encoded(flat(size=(8, 8)), "PNG")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    for name in ("train/0a1.jpg", "train/0b2.jpg"):
        (tmp_path / name).write_bytes(PNG)
    return tmp_path


def labels(root: Path, table: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    source = open_source(str(root), SourceConfig(label_from=f"file:{table}", **options))
    return source, {row.path: row.label for row in source.list_rows()}


TWO = {"train/0a1.jpg": "cat", "train/0b2.jpg": "dog"}


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("train.csv", "id,label\n0a1,cat\n0b2,dog\n", {}),
        ("train.csv", "id,breed\n0a1,cat\n0b2,dog\n", {}),
        ("t.csv", "breed,who,fold\ncat,0a1,1\ndog,0b2,2\n", {"label": "breed", "key_column": "who"}),
        ("t.csv", "breed,who,fold\ncat,0a1.jpg,1\ndog,0b2.jpg,2\n", {"label": "breed"}),
        ("metadata.csv", "file_name,label\ntrain/0a1.jpg,cat\ntrain/0b2.jpg,dog\n", {}),
        ("metadata.csv", "file_name,label\n.\\train\\0a1.jpg,cat\n./train/0b2.jpg,dog\n", {}),
        ("metadata.csv", "file_name,label\ndata/train/0a1.jpg,cat\ndata/train/0b2.jpg,dog\n", {}),
        ("metadata.jsonl", '{"file_name": "0a1.jpg", "label": "cat"}\n{"file_name": "0b2.jpg", "label": "dog"}\n', {}),
        ("t.json", json.dumps([{"image": "0a1.jpg", "class": "cat"}, {"image": "0b2.jpg", "class": "dog"}]), {}),
        ("t.json", '{"0a1.jpg": "cat", "0b2.jpg": "dog"}', {}),
        ("val_annotations.txt", "0a1.jpg\tcat\t0\t9\n0b2.jpg\tdog\t0\t9\n", {}),
        ("list.txt", "train/0a1.jpg cat\ntrain/0b2.jpg dog\n", {}),
        ("list.txt", "0a1 cat\n0b2 dog\n", {}),
        ("list.txt", "# name class\n0a1 cat\n0b2 dog\n", {}),
        ("list.txt", "2\n0a1.jpg cat\n0b2.jpg dog\n", {}),
        ("list.txt", "0a1.jpg cat 1\n0b2.jpg dog 1\n", {"label": "2"}),
        ("list.txt", "2\nage kind\n0a1.jpg 3 cat\n0b2.jpg 4 dog\n", {"label": "kind"}),
        ("list.txt", "image_id kind\n0a1 cat\n0b2 dog\n", {}),
        ("list.txt", "cat\ndog\n", {}),
        ("list.csv", "label\ncat\ndog\n", {}),
        ("t.csv", "id,label\n0a1.png,cat\n0b2.png,dog\n", {}),
    ],
)
def test_forms_of_tables_of_labels(name: str, text: str, options: dict[str, Any], images: Path) -> None:
    (images / name).write_text(text)
    source, found = labels(images, name, **options)
    assert found == TWO, source.summary.table()
    assert (source.summary.label_type, dict(source.summary.classes)) == ("string", {"cat": 1, "dog": 1})


def test_a_table_elsewhere(images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    for place, name in ((other, str(other / "t.csv")), (images, "../t.csv")):
        (place / "t.csv").write_text("id,label\n0a1,1\n0b2,0\n")
        assert labels(images / "train", name)[1] == {"0a1.jpg": 1, "0b2.jpg": 0}
    pq.write_table(pa.table({"id": ["0a1"], "label": [1.0]}), other / "0.parquet")
    pq.write_table(pa.table({"id": ["0b2"], "label": [0.0]}), other / "1.parquet")
    assert labels(images / "train", f"{other}/*.parquet")[1] == {"0a1.jpg": 1, "0b2.jpg": 0}


def test_lists_whose_lines_hold_more_words_than_two(images: Path) -> None:
    (images / "list.txt").write_text("0a1 Boeing 707\n0b2 Cessna 172 Skyhawk\n")
    source, found = labels(images, "list.txt")
    assert found == {"train/0a1.jpg": "Boeing 707", "train/0b2.jpg": "Cessna 172 Skyhawk"}
    assert "the label is all that follows the name in its lines, such as 'Boeing 707'" in "\n".join(source.summary.notes)
    (images / "list.txt").write_text("0a1 7 1 0.5\n0b2 8 1 -1\n")
    source, found = labels(images, "list.txt")
    assert found == {"train/0a1.jpg": 7, "train/0b2.jpg": 8} and "the label is the second" in "\n".join(source.summary.notes)
    assert labels(images, "list.txt", label="3")[1] == {"train/0a1.jpg": 1, "train/0b2.jpg": 1}
    (images / "list.txt").write_text("big cat\nbig dog\n")  # labels of two words, in the order of the images
    assert labels(images, "list.txt")[1] == {"train/0a1.jpg": "big cat", "train/0b2.jpg": "big dog"}


def test_the_order_of_a_list_is_in_doubt_where_names_hold_numbers_without_zeros(images: Path) -> None:
    for old, new in (("train/0a1.jpg", "train/10.jpg"), ("train/0b2.jpg", "train/9.jpg")):
        (images / old).rename(images / new)
    (images / "list.txt").write_text("a\nb\n")
    source, found = labels(images, "list.txt")
    assert found == {"train/10.jpg": "a", "train/9.jpg": "b"}
    (doubt,) = (doubt for doubt in source.summary.doubts if doubt.grave)
    assert "as text train/10.jpg comes before train/9.jpg" in doubt.sentence
    (images / "train/9.jpg").rename(images / "train/09.jpg")
    assert not any(doubt.grave for doubt in labels(images, "list.txt")[0].summary.doubts)


def test_whole_numbers_among_empty_cells(images: Path) -> None:
    for cells, expected in ((("1.0", "2.0"), [1, 2]), (("1.0", ""), [1, None]), (("7", ""), [7, None])):
        (images / "t.csv").write_text("id,label\n" + "".join(f"{name},{cell}\n" for name, cell in zip(("0a1", "0b2"), cells, strict=True)))
        source, found = labels(images, "t.csv")
        assert [found[path] for path in TWO] == expected and source.summary.label_type == "int64"


def test_class_names_of_a_table(images: Path) -> None:
    about = {"info": {"features": {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}}}
    table = pa.table({"file_name": ["0a1.jpg", "0b2.jpg"], "label": [1, 0]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(about).encode()}), images / "t.parquet")
    source, found = labels(images, "t.parquet")
    assert found == TWO and source.summary.class_order == ("dog", "cat")


def test_what_does_not_fit_is_said(images: Path) -> None:
    (images / "train/0c3.jpg").write_bytes(PNG)
    (images / "other").mkdir()
    (images / "other/0a1.jpg").write_bytes(PNG)
    (images / "t.csv").write_text("id,label\n0a1,cat\n0b2,dog\n0d4,owl\n")
    source, found = labels(images, "t.csv")
    assert found == {**TWO, "train/0c3.jpg": None, "other/0a1.jpg": "cat"}
    said = "\n".join(source.summary.notes)
    assert "1 image has no row in t.csv, such as train/0c3.jpg" in said and "1 row of t.csv belongs to no image" in said
    assert any("1 row of t.csv names several images" in doubt.sentence for doubt in source.summary.doubts)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("id,label\n7,cat\n8,dog\n", {}, "none of its 2 rows belongs to an image.*'7'"),
        ("id,label\n0a1,cat\n0a1,dog\n", {}, "'0a1' has the labels 'cat' and 'dog'"),
        ("a,b,c\n1,2,3\n", {}, "which column .*--(key-column|label)"),
        ("id,label\n0a1,cat\n", {"key_column": "nope"}, "--key-column names 'nope'"),
        ("id,label\n0a1,cat\n", {"label": "nope"}, "--label names 'nope'"),
        ("0a1\n0b2\n", {}, "its lines name images, such as '0a1', and hold no label"),
        ("label\n1\n2\n3\n", {}, "holds 3 labels without the names of images; expected as many as there are images, 2"),
    ],
)
def test_tables_that_cannot_be_joined(text: str, options: dict[str, Any], message: str, images: Path) -> None:
    (images / "t.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        labels(images, "t.csv", **options)
    with pytest.raises(SourceError, match="there is no such table"):
        labels(images, "gone.csv")


def test_the_first_of_several_labels(images: Path) -> None:
    (images / "t.csv").write_text("id,label\n0a1,cat\n0a1,dog\n0b2,dog\n")
    assert labels(images, "t.csv", label_first=True)[1] == TWO


def tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            archive.addfile(info, io.BytesIO(PNG))


def test_tars_with_a_table_beside_them(tmp_path: Path) -> None:
    tar(tmp_path / "00000.tar", ["000000000.jpg", "000000001.jpg"])
    tar(tmp_path / "00001.tar", ["000010000.jpg", "000010001.left.jpg"])
    keys = ["000000000", "000000001", "000010000", "000010001"]
    pq.write_table(pa.table({"key": keys[:2], "label": [0, 1]}), tmp_path / "00000.parquet")
    pq.write_table(pa.table({"key": keys[2:], "label": [2, None]}), tmp_path / "00001.parquet")
    config = SourceConfig(label_from="file:*.parquet")
    source = open_source(f"{tmp_path}/*.tar", config)
    rows = list(source.list_rows())
    assert (source.summary.label_type, dict(source.summary.classes)) == ("int64", {0: 1, 1: 1, 2: 1})
    assert "joined by its column key" in source.summary.label_rule
    planned = SourceConfig().with_planned(source.config.planned())
    store = source_root(str(tmp_path), planned)
    found: list[Any] = [record for row in rows for record in read_slice(store, row, planned, "int64", {})]
    assert [record.label for record in found] == [0, 1, 2, None]
    pq.write_table(pa.table({"key": keys[:2], "label": [7, 7]}), tmp_path / "00000.parquet", compression="gzip")
    _opened.clear()  # as in another process
    with pytest.raises(SourceError, match="has changed since the plan was made"):
        list(read_slice(store, rows[0], planned, "int64", {}))


def test_a_list_without_names_is_not_for_tars(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("1.jpg")
        info.size = len(PNG)
        archive.addfile(info, io.BytesIO(PNG))
    (tmp_path / "list.txt").write_text("cat\n")
    with pytest.raises(SourceError, match="1 label without the names of images, and there are no image files"):
        labels(tmp_path, "list.txt")


def test_options_that_do_not_go_together(images: Path) -> None:
    with pytest.raises(ConfigError):
        SourceConfig(label="x", label_from="parent")
    for options in ({"key_column": "id"}, {"label_first": True}):
        with pytest.raises(SourceError, match="Leave"):
            open_source(str(images), SourceConfig(**options))


def test_a_list_without_names_is_of_the_asked_split(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "val/b.png", "val/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "ground_truth.txt").write_text("7\n9\n")
    source = open_source(str(tmp_path), SourceConfig(label_from="file:ground_truth.txt", split="val"))
    assert {row.path: row.label for row in source.list_rows()} == {"val/a.png": 7, "val/b.png": 9}
    (tmp_path / "t").mkdir()
    tar(tmp_path / "t/a.tar", ["a.jpg", "b.jpg"])
    tars = open_source(str(tmp_path / "t"), SourceConfig(label_from=f"file:{tmp_path}/ground_truth.txt"))
    with pytest.raises(SourceError, match="2 labels without the names .* unpack them, or give a table with a column of names"):
        list(tars.list_rows())
