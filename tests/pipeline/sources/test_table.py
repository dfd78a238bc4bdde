"""Tables: bytes become slices, URIs become file rows; columns are found, types kept, contradictions refused."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.pipeline.sources.zoo import encoded, flat
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import Reason, SourceError, TransientStorageError
from tokenshards.pipeline.records import AbsentRecord, FailedRecord, ImageRecord, PlanRow
from tokenshards.pipeline.sources import open_source, read_slice, source_root
from tokenshards.pipeline.sources.hosts.uris import resolve_uri
from tokenshards.pipeline.storage.store import Store

PNG = encoded(flat(size=(8, 8)), "PNG")
CONFIG = SourceConfig()


def numbered(n: int) -> bytes:
    return PNG + str(n).encode()


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def plan(url: Path | str, config: SourceConfig = CONFIG) -> tuple[Any, list[PlanRow]]:
    source = open_source(str(url), config)
    return source, list(source.list_rows())


def read_all(url: Path | str, config: SourceConfig = CONFIG) -> list[ImageRecord | FailedRecord]:
    source, rows = plan(url, config)
    store = source_root(str(url), config)
    return [record for row in rows for record in read_slice(store, row, config, source.summary.label_type, source.summary.meta_types)]


# Bytes


def test_bytes_become_slices_of_row_groups(tmp_path: Path) -> None:
    count = 2600
    path = parquet(tmp_path / "t.parquet", {"image": [numbered(n) for n in range(count)], "label": range(count)}, row_group_size=2200)
    source, rows = plan(path)
    assert [(row.sample_id, row.inputs, row.row_group) for row in rows] == [
        ("t.parquet#0:0-1000", 1000, 0),
        ("t.parquet#0:1000-2000", 1000, 0),
        ("t.parquet#0:2000-2200", 200, 0),
        ("t.parquet#1:2200-2600", 400, 1),
    ]
    assert all(row.kind == "rows" and row.size == path.stat().st_size and row.version for row in rows)
    assert (source.kind, source.ordered, source.summary.label_type, source.summary.rows) == ("table", False, "int64", count)
    for row in rows:
        found = list(source.read(row))
        assert [record.sample_id for record in found] == [f"t.parquet#{n}" for n in range(row.row_start, row.row_stop)]
        for n, record in zip(range(row.row_start, row.row_stop), found, strict=True):
            assert isinstance(record, ImageRecord) and (record.data, record.label) == (numbered(n), n)
            assert record.uri.endswith(f"t.parquet#{n}")


def test_hugging_face_structs_and_dictionary_labels(tmp_path: Path) -> None:
    images = [{"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    labels = pa.array(["owl", None, "cat"]).dictionary_encode()
    path = parquet(tmp_path / "t.parquet", {"image": images, "label": labels})
    found, before = read_all(path), read_all(path, SourceConfig(rules=2))
    assert isinstance(found[0], ImageRecord) and (found[0].data, found[0].label) == (PNG, "owl")
    assert [(type(record), record.sample_id) for record in found[1:]] == [(FailedRecord, "t.parquet#1"), (AbsentRecord, "t.parquet#2")]
    assert isinstance(found[1], FailedRecord) and found[1].error.reason is Reason.MISSING, "the file that it names is not there"
    assert before[0] == found[0], "a plan of older rules reads as it always did"
    assert [record.error.reason for record in before[1:] if isinstance(record, FailedRecord)] == [Reason.NO_IMAGE] * 2


def test_only_a_table_that_may_lack_images_needs_a_newer_format(tmp_path: Path) -> None:
    whole = {"image": [PNG, PNG], "label": [1, 2]}
    struct = [{"bytes": PNG, "path": "a"}, {"bytes": PNG, "path": "a"}]
    cases: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
        "whole": (whole, {}, False),
        "whole struct": ({"image": struct}, {}, False),
        "null": ({"image": [PNG, None]}, {}, True),
        "null struct": ({"image": [struct[0], {"bytes": None, "path": "b"}]}, {}, True),
        "null in a later row group": ({"image": [PNG, PNG, None]}, {"row_group_size": 1}, True),
        "no statistics": (whole, {"write_statistics": False}, True),
        "status": ({**whole, "status": ["success", "failed_to_download"]}, {}, True),
    }
    for name, (columns, options, expected) in cases.items():
        source, _ = plan(parquet(tmp_path / f"{name}.parquet", columns, **options))
        assert source.summary.newer_inputs == expected, name
        source, _ = plan(tmp_path / f"{name}.parquet", SourceConfig(rules=2))
        assert not source.summary.newer_inputs, name


def test_rows_that_their_table_marks_as_failed_are_absent(tmp_path: Path) -> None:
    status = ["success", "failed_to_download", "failed_to_resize", None, "pending"]
    path = parquet(tmp_path / "b.parquet", {"jpg": [PNG, None, PNG, PNG, PNG], "status": status})
    assert [type(record) for record in read_all(path)] == [ImageRecord, AbsentRecord, AbsentRecord, ImageRecord, ImageRecord]
    asked = read_all(path, SourceConfig(label="status"))
    assert [type(record) for record in asked] == [ImageRecord, AbsentRecord, *[ImageRecord] * 3], "a label says nothing about the image"
    write_csv(tmp_path / "u.csv", [["url", "status"], *[[f"{n}.png", text or ""] for n, text in enumerate(status)], ["", "success"]])
    source, rows = plan(tmp_path / "u.csv")
    assert [row.kind for row in rows] == ["file", "absent", "absent", "file", "file", "absent"]
    assert [row.inputs for row in rows] == [1] * 6 and source.summary.newer_inputs
    assert any("3 rows have no image" in note for note in source.summary.notes)
    _, rows = plan(tmp_path / "u.csv", SourceConfig(rules=2))
    assert [row.kind for row in rows] == ["file"] * 6


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(PNG))])
def test_every_kind_of_binary_column(kind: pa.DataType, tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"weird name": pa.array([PNG, PNG], kind), "n": [1, 2]})
    assert [record.data for record in read_all(path)] == [PNG, PNG]


def test_ids_and_meta(tmp_path: Path) -> None:
    columns = {
        "img": [numbered(0), numbered(1)],
        "key": ["a", "b"],
        "category": ["owl", None],
        "score": [0.5, None],
        "width": pa.array([3, None], pa.int16()),
        "ok": [True, None],
        "note": ["x", None],
    }
    path = parquet(tmp_path / "t.parquet", columns)
    config = SourceConfig(id_column="key", meta=("score", "width", "ok", "note"))
    source, (row,) = plan(path, config)
    assert source.summary.meta_types == {"score": "float64", "width": "int64", "ok": "bool", "note": "string"}
    first, second = source.read(row)
    assert (first.sample_id, first.label, first.meta) == ("a", "owl", {"score": 0.5, "width": 3, "ok": True, "note": "x"})
    assert (second.sample_id, second.label, set(second.meta.values())) == ("b", None, {None})
    assert [record.sample_id for record in source.read(replace(row, only=("t.parquet#1",)))] == ["b"]


def test_integer_ids(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"image": [PNG, PNG], "key": [7, 8]})
    assert [record.sample_id for record in read_all(path, SourceConfig(id_column="key"))] == ["7", "8"]


def test_repeated_and_empty_ids_are_refused(tmp_path: Path) -> None:
    for number, keys in enumerate((["a", "b", "c"], ["d", "b", "e"])):
        parquet(tmp_path / f"{number}.parquet", {"image": [PNG] * 3, "key": keys})
    with pytest.raises(SourceError, match=r"1 value is not unique, such as 'b' \(2 rows\)"):
        plan(tmp_path, SourceConfig(id_column="key"))
    parquet(tmp_path / "1.parquet", {"image": [PNG] * 2, "key": ["d", None]})
    with pytest.raises(SourceError, match="row 1: --id-column key is empty"):
        plan(tmp_path, SourceConfig(id_column="key"))
    parquet(tmp_path / "1.parquet", {"image": [PNG] * 2, "key": ["d", "e"]})
    assert len(plan(tmp_path, SourceConfig(id_column="key"))[1]) == 2


def test_a_slice_accounts_for_every_row_whatever_happens_to_its_file(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"image": [numbered(n) for n in range(50)], "label": range(50)}, row_group_size=20)
    source, rows = plan(path)
    row = rows[1]
    ids = [f"t.parquet#{n}" for n in range(20, 40)]

    def failures(row: PlanRow) -> set[Reason]:
        found = list(source.read(row))
        assert [record.sample_id for record in found] == [record_id for record_id in ids if row.only is None or record_id in row.only]
        return {record.error.reason for record in found if isinstance(record, FailedRecord)}

    good = path.read_bytes()
    parquet(path, {"image": [PNG], "label": [1]})
    assert failures(row) == {Reason.CHANGED_SINCE_PLAN}
    assert failures(replace(row, only=("t.parquet#21",))) == {Reason.CHANGED_SINCE_PLAN}
    path.unlink()
    (tmp_path / "other").touch()  # an empty folder may be one that is not mounted
    assert failures(row) == {Reason.MISSING}
    path.write_bytes(good[:-40] + bytes(40))
    assert failures(replace(row, version="")) == {Reason.BAD_CONTAINER}
    path.write_bytes(good)
    assert failures(replace(row, version="")) == set()


def test_damaged_pages_cost_the_rest_of_the_slice(tmp_path: Path) -> None:
    images = [numbered(n) * 40 for n in range(300)]
    path = parquet(tmp_path / "t.parquet", {"image": images}, compression="none", data_page_size=4096, use_dictionary=False)
    source, (row,) = plan(path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 30_000] = b"\xa5" * 30_000  # several pages with their headers
    path.write_bytes(damaged)
    found = list(source.read(replace(row, version="")))
    assert [record.sample_id for record in found] == [f"t.parquet#{n}" for n in range(300)]
    broken = [n for n, record in enumerate(found) if isinstance(record, FailedRecord)]
    assert 0 < broken[0] <= 150 and broken == list(range(broken[0], 300))
    assert all(record.error.reason == Reason.BAD_CONTAINER for record in found if isinstance(record, FailedRecord))


def test_an_outage_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "t.parquet", {"image": [PNG] * 10})
    source, (row,) = plan(path)

    def failing(*_: object, **__: object) -> bytes:
        raise TransientStorageError("an outage")

    monkeypatch.setattr(Store, "read", failing)
    with pytest.raises(TransientStorageError):
        list(source.read(row))
    with pytest.raises(TransientStorageError):
        plan(path)


def test_only_needed_columns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heavy = [bytes([n]) * 1_000_000 for n in range(4)]
    path = parquet(tmp_path / "t.parquet", {"other": heavy, "image": [PNG] * 4}, compression="none", use_dictionary=False)
    source, (row,) = plan(path, SourceConfig(image_column="image"))
    read = []
    original = Store.read

    def counting(self: Store, path: str, start: int | None = None, end: int | None = None) -> bytes:
        data = original(self, path, start, end)
        read.append(len(data))
        return data

    monkeypatch.setattr(Store, "read", counting)
    assert len(list(source.read(row))) == 4
    assert sum(read) < 300_000


def test_tables_must_agree(tmp_path: Path) -> None:
    parquet(tmp_path / "0.parquet", {"image": [PNG], "label": [1]})
    parquet(tmp_path / "1.parquet", {"image": [PNG], "label": ["owl"]})
    with pytest.raises(SourceError, match=r"1\.parquet.* are .*; expected .*, as in the first table"):
        plan(tmp_path, SourceConfig(rules=2))
    source, _ = plan(tmp_path)
    assert (source.summary.label_type, dict(source.summary.classes)) == ("string", {"1": 1, "owl": 1})
    parquet(tmp_path / "1.parquet", {"image": ["a.png"], "label": [1]})
    with pytest.raises(SourceError, match=r"1\.parquet.* holds URIs; expected bytes, as in the first table"):
        plan(tmp_path)


def test_columns_that_cannot_be_found_or_used(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"x": [1], "y": [0.5]})
    with pytest.raises(SourceError, match=r"no column of image bytes or URIs.*x \(int64\), y \(float64\)"):
        plan(path)
    path = parquet(tmp_path / "t.parquet", {"image": [PNG], "label": [0.5], "when": pa.array([0], pa.date32()), "box": [{"x": 1}]})
    for config, option in (
        (SourceConfig(image_column="nope"), "--image-column"),
        (SourceConfig(image_column="label"), "--image-column"),
        (SourceConfig(label="box"), "--label names 'box' of type struct"),
        (SourceConfig(label="nope"), "--label"),
        (SourceConfig(id_column="label"), "--id-column"),
        (SourceConfig(meta=("nope",)), "--meta"),
        (SourceConfig(rules=2, label="label"), "--label"),
        (SourceConfig(rules=2, meta=("when",)), "--meta"),
    ):
        with pytest.raises(SourceError, match=option):
            plan(path, config)
    source, _ = plan(path, SourceConfig(rules=2))
    assert source.summary.label_type is None and "no labels" in "\n".join(source.summary.lines())


def test_not_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"not parquet" * 10)
    with pytest.raises(SourceError, match="cannot be read"):
        plan(tmp_path / "t.parquet")


def test_the_same_from_a_remote_store(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"image": [numbered(n) for n in range(30)], "label": range(30)}, row_group_size=7)
    store = Store("memory://table-test/deep")
    store.write("t.parquet", path.read_bytes())
    local, remote = read_all(path), read_all("memory://table-test/deep/t.parquet")
    assert [replace(record, uri="") for record in local] == [replace(record, uri="") for record in remote]


# URIs


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_csv_of_paths(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "ä, b.png").write_bytes(PNG)
    (tmp_path / "other.png").write_bytes(numbered(1))
    absolute = str(tmp_path / "other.png")
    header = ["filename", "class", "score", "id"]
    body = [
        ["../images/ä, b.png", "7", "1", "x"],
        ["../gone.png", "8", "", "y"],
        [absolute, "", "0.5", "z"],
        [f"file://{absolute}", "9", "2", "w"],
    ]
    path = write_csv(tmp_path / "lists" / "train.csv", [header, *body])
    config = SourceConfig(meta=("score",), id_column="id")
    source, rows = plan(path, config)
    assert source.summary.label_type == "int64" and source.summary.meta_types == {"score": "float64"}
    assert [(row.kind, row.sample_id, row.label, row.meta["score"], row.size) for row in rows] == [
        ("file", "x", 7, 1.0, -1), ("file", "y", 8, None, -1), ("file", "z", None, 0.5, -1), ("file", "w", 9, 2.0, -1)
    ]  # fmt: skip
    found = read_all(path, config)
    assert [record.data for record in found] == [PNG, None, numbered(1), numbered(1)]
    assert isinstance(found[1], FailedRecord) and found[1].error.reason == Reason.MISSING


def test_numbered_rows_and_paths_below_the_table(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [["path"], ["a/./b.png"], ["a/../c.png"]])
    _, rows = plan(tmp_path)
    assert [(row.sample_id, row.path) for row in rows] == [("t.csv#0", "a/b.png"), ("t.csv#1", "c.png")]
    write_csv(path, [["path", "label"], ["", "1"], ["nosuchscheme://x/y.png", "1"]])
    absent, failed = read_all(path)
    assert isinstance(absent, AbsentRecord) and isinstance(failed, FailedRecord) and failed.error.reason == Reason.BAD_URI
    found = read_all(path, SourceConfig(rules=2))
    assert [record.error.reason for record in found if isinstance(record, FailedRecord)] == [Reason.BAD_URI] * 2


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["1", "2", ""], "int64"),
        (["01", "02", "10"], "string"),
        (["1", "owl", "2"], "string"),
        (["1.5", "2", "3"], "string"),
        (["", "", ""], "string"),
        ([str(1 << 63), "1", "2"], "string"),
    ],
)
def test_types_of_csv_labels(labels: list[str], expected: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [["path", "label"], *[[f"{n}.png", label] for n, label in enumerate(labels)]])
    source, rows = plan(path)
    assert source.summary.label_type == expected
    assert [row.label for row in rows] == [None if not text else int(text) if expected == "int64" else text for text in labels]


def test_a_late_misfit_makes_all_labels_text(tmp_path: Path) -> None:
    body = [[f"{n}.png", "1"] for n in range(5000)]
    path = write_csv(tmp_path / "t.csv", [["path", "label"], *body, ["x.png", "owl"]])
    with pytest.raises(SourceError, match=r"row 5000: the label is 'owl'; expected int64"):
        plan(path, SourceConfig(rules=2))
    source, _ = plan(path)
    assert (source.summary.label_type, dict(source.summary.classes)) == ("string", {"1": 5000, "owl": 1})


def test_blank_lines_of_a_jsonl_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('\n{"path": "a.png"}\n  \n{"path": "b.png"}\r\n\r\n')
    assert [(row.sample_id, row.path) for row in plan(tmp_path / "t.jsonl")[1]] == [("t.jsonl#0", "a.png"), ("t.jsonl#1", "b.png")]


def test_no_labels_where_none_are_wanted(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"image": [PNG], "label": [7]})
    source, _ = plan(path)
    assert source.summary.label_rule == "column label, whole numbers"
    config = SourceConfig(no_labels=True)
    source, _ = plan(path, config)
    assert source.summary.label_type is None and "no labels, as --no-labels asks" in source.summary.lines()
    assert [record.label for record in read_all(path, config)] == [None]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        {"url": "https://host.invalid/a.png", "label": 3, "meta": {"k": 1}, "n": 1},
        {"url": "b.png", "label": None, "n": 0.5},
        {"url": "c.png", "n": None},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "t.jsonl").write_text(text)
    config = SourceConfig(meta=("n",))
    source, rows = plan(tmp_path / "t.jsonl", config)
    assert source.summary.label_type == "int64" and source.summary.meta_types == {"n": "float64"}
    assert [(row.path, row.label, row.meta["n"]) for row in rows] == [
        ("https://host.invalid/a.png", 3, 1.0), ("b.png", None, 0.5), ("c.png", None, None)
    ]  # fmt: skip
    for ending, data in ((".gz", gzip.compress(text.encode())), (".zst", zstandard.compress(text.encode()))):
        (tmp_path / "packed").mkdir(exist_ok=True)
        (tmp_path / "packed" / f"t.jsonl{ending}").write_bytes(data)
        packed = [replace(row, sample_id="") for row in plan(tmp_path / "packed" / f"t.jsonl{ending}", config)[1]]
        assert packed == [replace(row, sample_id="") for row in rows]


def test_text_in_json_stays_text(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "a.png", "label": "7"}\n{"path": "b.png", "label": 8}\n')
    source, rows = plan(tmp_path / "t.jsonl")
    assert source.summary.label_type == "string" and [row.label for row in rows] == ["7", "8"]


def test_text_that_utf8_cannot_hold_is_shown_escaped(tmp_path: Path) -> None:
    line = r'{"path": "\ud800.png", "label": "\udfff", "id": "\ud800", "note": "\ud800"}'
    (tmp_path / "t.jsonl").write_text(line)
    config = SourceConfig(id_column="id", meta=("note",))
    (row,) = plan(tmp_path / "t.jsonl", config)[1]
    assert (row.path, row.label, row.sample_id, row.meta["note"]) == (r"\ud800.png", r"\udfff", r"\ud800", r"\ud800")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", '{"path": "a.png"}\n{"path": \n', "cannot be read"),
        ("t.jsonl", '{"path": "a.png"}\n[1]\n', "line 2 is .* expected a JSON object"),
        ("t.jsonl", "", "the tables are empty"),
        ("t.csv", "path,label\na.png,1,2\n", "line 2: it has 3 cells; expected 2"),
        ("t.csv", 'path,label\n"a.png,1\n', "cannot be read"),
        ("t.csv", "x,y\n1,2\n", "no column of image bytes or URIs"),
    ],
)
def test_damaged_text_tables(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        plan(tmp_path / name)


def test_damaged_bytes_in_text_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"path\n\xff\xfe.png\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"path\n" + b"a.png\n" * 9000)[:-30])
    (tmp_path / "c.csv.zst").write_bytes(b"not zstd")
    for name in ("a.csv", "b.csv.gz", "c.csv.zst"):
        with pytest.raises(SourceError, match="not in UTF-8" if name == "a.csv" else "cannot be read"):
            plan(tmp_path / name)


def test_parquet_of_uris_streams_rows(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(9000)]
    path = parquet(tmp_path / "t.parquet", {"uri": names, "label": pa.array(["a"] * 9000).dictionary_encode()}, row_group_size=5000)
    source, rows = plan(path)
    assert [row.path for row in rows] == names and {row.label for row in rows} == {"a"}
    assert source.summary.rows == 9000 and "9,000 rows, 1 labels" in source.summary.lines()[0].replace("label,", "labels,")


def test_duplicate_ids_of_uris_are_left_to_the_shard(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [["path", "id"], ["a.png", "x"], ["b.png", "x"]])
    assert [row.sample_id for row in plan(path, SourceConfig(id_column="id"))[1]] == ["x", "x"]


def test_uris_relative_to_a_remote_table() -> None:
    store = Store("memory://uris/lists")
    store.write("t.csv", b"path\n../images/a.png\nb.png\nmemory://uris/images/a.png\n")
    Store("memory://uris").write("images/a.png", PNG)
    store.write("b.png", numbered(1))
    assert [record.data for record in read_all("memory://uris/lists/t.csv")] == [PNG, numbered(1), PNG]


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        ("a.jpg", "lists/a.jpg"),
        ("../a.jpg?size=1", "a.jpg?size=1"),
        ("../../photos/a%20b.jpg", "http://host:1/photos/a%20b.jpg"),
        ("../../../../a.jpg", "http://host:1/a.jpg"),
    ],
)
def test_uris_relative_to_a_table_on_a_web_server(uri: str, resolved: str) -> None:
    assert resolve_uri(Store("http://host:1/data"), "lists/t.csv", uri) == resolved


def test_rows_that_name_local_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    inside, outside = str(tmp_path / "lists" / "a.jpg"), str(tmp_path / "b.jpg")
    write_csv(tmp_path / "lists" / "t.csv", [["path"], [inside], [f"file://{outside}"], ["../c.jpg"], ["d.jpg"], ["https://host/e.jpg"]])
    source, _ = plan(tmp_path / "lists")
    assert f"2 rows name files outside {tmp_path}/lists: if one fails, the quarantine does not keep its bytes" in source.summary.lines()
    store = Store("memory://local-names")
    store.write("t.csv", (tmp_path / "lists" / "t.csv").read_bytes())
    source, _ = plan("memory://local-names/t.csv")
    assert "2 rows name local files, which a table in a store may not do: they will be quarantined as bad_uri" in source.summary.lines()


def test_one_format_is_taken_from_a_folder(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "t.parquet", {"image": [PNG]})
    write_csv(tmp_path / "notes.csv", [["a"], ["1"]])
    source, rows = plan(tmp_path)
    assert [row.path for row in rows] == ["data/t.parquet"]
    assert {kind: found.count for kind, found in source.summary.left_out.items()} == {".csv": 1}


def test_plain_tables_are_read_alike_by_older_rules(tmp_path: Path) -> None:
    count = 3000
    names, numbers = [f"{n}.png" for n in range(count)], [n % 7 for n in range(count)]
    meta = {"score": [n / 2 for n in range(count)], "note": ["x"] * count, "id": [f"i{n}" for n in range(count)]}
    parquet(tmp_path / "b.parquet", {"image": [numbered(n) for n in range(count)], "label": numbers, **meta}, row_group_size=1200)
    parquet(tmp_path / "u.parquet", {"path": names, "label": [f"c{n}" for n in numbers], **meta})
    write_csv(tmp_path / "t.csv", [["path", "label", *meta], *zip(names, numbers, *meta.values(), strict=True)])
    rows = [
        {"path": name, "label": number, "score": n / 2, "id": f"i{n}"} for n, (name, number) in enumerate(zip(names, numbers, strict=True))
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("b.parquet", "u.parquet", "t.csv", "t.jsonl"):
        for options in ({}, {"meta": ("score",), "id_column": "id"}, {"no_labels": True}):
            (new, planned), (old, before) = (plan(tmp_path / name, SourceConfig(rules=rules, **options)) for rules in (3, 2))
            assert planned == before and not new.summary.newer_inputs
            assert (new.summary.label_type, new.summary.meta_types) == (old.summary.label_type, old.summary.meta_types)
            if name == "b.parquet":
                assert [list(new.read(row)) for row in planned[:2]] == [list(old.read(row)) for row in before[:2]]
