"""Tables as people have them: delimiters, encodings, lists, JSON, Arrow; cells that hold images or name them in other ways."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipeline.sources.zoo import encoded, flat
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.conversion.split_runs import splits_of_source
from tokenshards.pipeline.errors import DoubtError, Reason, SourceError
from tokenshards.pipeline.planning.partition import RowSpool, table_to_rows
from tokenshards.pipeline.records import AbsentRecord, FailedRecord, ImageRecord, LeftOutRecord, PlanRow
from tokenshards.pipeline.sources import open_source, read_slice, source_root
from tokenshards.pipeline.sources.tables import encoded as table_encoded

PNG = encoded(flat(size=(8, 8)), "PNG")
TEXT_PNG = base64.b64encode(PNG).decode()


def numbered(n: int) -> bytes:
    return PNG + str(n).encode()


def plan(url: Path | str, **options: Any) -> tuple[Any, list[PlanRow]]:
    source = open_source(str(url), SourceConfig(**options))
    return source, list(source.list_rows())


def records(url: Path | str, **options: Any) -> list[Any]:
    """Return what a worker reads, by the config that the plan would record."""
    source, rows = plan(url, **options)
    config = SourceConfig().with_planned(source.config.planned())
    store = source_root(str(url), config)
    return [record for row in rows for record in read_slice(store, row, config, source.summary.label_type, source.summary.meta_types)]


def labels(url: Path | str, **options: Any) -> list[Any]:
    return [record.label for record in records(url, **options)]


def parquet(place: Path, /, **columns: Any) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), place)
    return place


def notes(source: Any) -> str:
    return "\n".join([f"labels: {source.summary.label_rule}", *source.summary.notes])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cat").mkdir()
    for name in ("1.png", "2.png", "cat/1.png"):
        (tmp_path / name).write_bytes(PNG)
    return tmp_path


# Text


TWO = [("1.png", "cat"), ("2.png", "dog")]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("t.tsv", "path\tlabel\n1.png\tcat\n2.png\tdog\n", TWO),
        ("t.tsv", 'path\tlabel\n1.png\t"big" cat\n2.png\tdog\n', [("1.png", '"big" cat'), ("2.png", "dog")]),
        ("t.csv", "path;label\n1.png;cat\n2.png;dog\n", TWO),
        ("t.csv", "path\tlabel\n1.png\tcat\n2.png\tdog\n", TWO),
        ("t.csv", "path|label\n1.png|cat\n2.png|dog\n", TWO),
        ("t.csv", "\ufeffpath,label\r\n1.png,cat\r\n\r\n2.png,dog\r\n\r\n", TWO),
        ("t.csv", "1.png,cat\n2.png,dog\n", TWO),
        ("t.csv", "cat,1.png\ndog,2.png\n", TWO),
        ("t.csv", "photo,1.png\nimages,2.png\n,none\n,none\n", [("1.png", "photo"), ("2.png", "images"), ("none", None), ("none", None)]),
        ("t.tsv", "a cat on a mat\t1.png\na dog in a bog\t2.png\n", [("1.png", None), ("2.png", None)]),
        ("t.csv", "path,label\n1.png\n2.png,dog,\n", [("1.png", None), ("2.png", "dog")]),
        ("t.txt", "1.png\n\n2.png\n", [("1.png", None), ("2.png", None)]),
        ("t.txt", "1.png 0\n2.png 1\n", [("1.png", 0), ("2.png", 1)]),
        ("t.txt", "1.png\tcat\n2.png\tdog\n", TWO),
        ("t.txt", "# name class\n1.png 0\n2.png 1\n", [("1.png", 0), ("2.png", 1)]),
        ("t.txt", "a cat.png 0\na  dog.png\t1\n", [("a cat.png", 0), ("a  dog.png", 1)]),
        ("t.json", '{"1.png": "cat", "2.png": "dog"}', [("1.png", "cat"), ("2.png", "dog")]),
        ("t.txt", "https://h.example/a b.png\n", [("https://h.example/a b.png", None)]),
        ("t.json", json.dumps([{"path": "1.png", "label": "cat"}, {"path": "2.png", "label": "dog"}]), TWO),
        ("t.json", '{"path": "1.png", "label": "cat"}\n{"path": "2.png", "label": "dog"}\n', TWO),
        ("t.ndjson", '{"path": "1.png", "label": "cat"}\n\n{"path": "2.png", "label": "dog"}\n', TWO),
    ],
)
def test_forms_of_text(name: str, text: str, expected: list[Any], folder: Path) -> None:
    (folder / name).write_bytes(text.encode())
    source, rows = plan(folder / name)
    assert [(row.path, row.label) for row in rows] == expected
    assert not source.summary.newer_inputs, "format 1.0 reads such rows"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_encodings(encoding: str, folder: Path) -> None:
    text = "path,label\r\n1.png,käse\r\n"
    bom = "" if encoding in ("utf-16", "utf-8-sig") else "\ufeff"
    (folder / "t.csv").write_bytes((bom + text).encode(encoding))
    assert [(row.path, row.label) for row in plan(folder / "t.csv")[1]] == [("1.png", "käse")]


def test_columns_of_one_name_are_told_apart(folder: Path) -> None:
    (folder / "t.csv").write_text("path,label,label\n1.png,1,cat\n2.png,2,dog\n")
    source, rows = plan(folder / "t.csv")
    assert [row.label for row in rows] == [1, 2] and "several columns label: the first keeps its name, the next is named label.2" in notes(
        source
    )
    assert labels(folder / "t.csv", label="label.2") == ["cat", "dog"]


def test_a_table_in_an_unknown_encoding_is_refused_with_the_way(folder: Path) -> None:
    (folder / "t.csv").write_bytes("path,label\n1.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(SourceError, match="not in UTF-8 .byte 0xe9.; expected UTF-8, or UTF-16 with its mark.*iconv"):
        plan(folder / "t.csv")


def test_a_delta_table_is_a_doubt(tmp_path: Path) -> None:
    for name in ("part-0", "_delta_log/0.checkpoint"):
        parquet(tmp_path / f"{name}.parquet", image=[PNG])
    source, rows = plan(tmp_path)
    assert [row.path for row in rows] == ["part-0.parquet"]
    assert any("this is a Delta table, whose log says which files are current" in doubt.sentence for doubt in source.summary.doubts)


def test_what_is_wrong_with_a_text_is_said_with_its_line(folder: Path) -> None:
    for name, text, message in (
        ("a.csv", 'path,caption\n1.png,ok\n2.png,"big" cat\n', "line 3"),
        ("b.csv", "path,label\n1.png,cat\n2.png,dog,bog\n", "line 3: it has 3 cells; expected 2"),
        ("c.json", '{"images": [], "annotations": []}', "an object with images, annotations; expected an array"),
        ("d.txt", "so long, and thanks\n", "no column of image bytes or URIs"),
        ("e.csv", "", "the tables are empty"),
    ):
        (folder / name).write_text(text)
        with pytest.raises(SourceError, match=message):
            plan(folder / name)


def test_long_cells_and_cells_of_several_lines(folder: Path) -> None:
    (folder / "t.csv").write_text(f'path,caption\n1.png,"{"x" * 200_000}"\n2.png,"a ""red"", cat\non a mat"\n')
    first, second = plan(folder / "t.csv", meta=("caption",))[1]
    assert (len(first.meta["caption"]), second.meta["caption"]) == (200_000, 'a "red", cat\non a mat')


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(CELL, min_size=1, max_size=12),
    delimiter=st.sampled_from(",;\t|"),
    crlf=st.booleans(),
    form=st.sampled_from(["utf-8", "utf-16"]),
)
def test_whatever_cells_hold_is_read_as_written(cells: list[str], delimiter: str, crlf: bool, form: str, tmp_path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n" if crlf else "\n")
    writer.writerows([["path", "label", "image", "note"], *(["x.png", cell, TEXT_PNG, cell] for cell in cells)])
    (tmp_path / "t.csv").write_bytes(text.getvalue().encode(form))
    expected = [cell or None for cell in cells]
    rows = plan(tmp_path / "t.csv", image_column="path", meta=("note",), as_text=True)[1]
    assert [row.label for row in rows] == [row.meta["note"] for row in rows] == expected
    objects = [{"path": "x.png", "label": cell, "image": TEXT_PNG, "note": cell} for cell in cells]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row, ensure_ascii=crlf) + "\n" for row in objects), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_encoded, "SLICE_ROWS", 3)
        for name, notes_read in (("t.csv", expected), ("t.jsonl", cells)):
            found = records(tmp_path / name, meta=("note",), as_text=True)
            assert [record.data for record in found] == [PNG] * len(cells)
            assert [record.label for record in found] == expected and [record.meta["note"] for record in found] == notes_read


def test_a_header_that_is_a_row_is_said(folder: Path) -> None:
    (folder / "t.csv").write_text("1.png,cat,3\n2.png,dog,4\n")
    source, rows = plan(folder / "t.csv", label="2", meta=("3",))
    assert [(row.path, row.label, row.meta) for row in rows] == [("1.png", "cat", {"3": 3}), ("2.png", "dog", {"3": 4})]
    assert "has no header: its columns are named 1 to 3" in notes(source)


# Columns of columns


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"image": [numbered(n) for n in range(5)], "label": pa.array(["a", "b", "a", "b", None]).dictionary_encode()})
    pyarrow.feather.write_feather(table, str(tmp_path / "a.feather"), chunksize=2)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    for name in ("a.feather", "b.arrow"):
        source, rows = plan(tmp_path / name)
        assert [(row.row_group, row.inputs) for row in rows] == [(0, 2), (1, 2), (2, 1)]
        assert source.summary.newer_inputs and source.summary.label_type == "string"
        found = records(tmp_path / name)
        assert [record.data for record in found] == [numbered(n) for n in range(5)]
        assert [record.label for record in found] == ["a", "b", "a", "b", None]


def test_structs_without_bytes_name_files(folder: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": None, "path": "1.png"}, {"bytes": PNG, "path": "x.png"}, {"bytes": None, "path": "gone.png"}, None]
    first, second, third, fourth = records(parquet(folder / "t.parquet", image=pa.array(cells, kind)))
    assert (first.data, second.data) == (PNG, PNG)
    assert isinstance(third, FailedRecord) and third.error.reason is Reason.MISSING
    assert isinstance(fourth, AbsentRecord)
    no_bytes = pa.struct([("bytes", pa.null()), ("path", pa.string())])
    found = records(parquet(folder / "n.parquet", image=pa.array([{"bytes": None, "path": "1.png"}, None], no_bytes)))
    assert found[0].data == PNG and isinstance(found[1], AbsentRecord)


def test_structs_of_a_file_in_which_every_image_is_a_path(folder: Path) -> None:
    kind = pa.struct([("bytes", pa.null()), ("path", pa.string())])  # what pyarrow makes of None in every row
    path = parquet(folder / "t.parquet", image=pa.array([{"bytes": None, "path": "1.png"}, {"bytes": None, "path": None}], kind))
    first, second = records(path)
    assert first.data == PNG and isinstance(second, AbsentRecord) and plan(path)[0].summary.newer_inputs


def test_file_names_of_structs_are_ids_where_each_occurs_once(tmp_path: Path) -> None:
    for names, ids in ((["a.png", "b.png"], ["a.png", "b.png"]), (["a.png", "a.png"], ["t.parquet#0", "t.parquet#1"])):
        path = parquet(tmp_path / "t.parquet", image=[{"bytes": PNG, "path": name} for name in names])
        assert [record.sample_id for record in records(path)] == ids
        assert [record.sample_id for record in records(path, rules=2)] == ["t.parquet#0", "t.parquet#1"]
    parquet(tmp_path / "d/0.parquet", image=[{"bytes": PNG, "path": "a.png"}])
    parquet(tmp_path / "d/1.parquet", image=[{"bytes": PNG, "path": "a.png"}])
    assert [record.sample_id for record in records(tmp_path / "d")] == ["0.parquet#0", "1.parquet#0"]
    with pytest.raises(SourceError, match=r"image\.path: 1 value is not unique, such as 'a\.png'"):
        plan(tmp_path / "d", id_column="image.path")


def test_ids_that_become_numbers_of_rows_say_why(tmp_path: Path) -> None:
    """One null image in a million changed the ids of all rows without a word."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": PNG, "path": f"{n}.png"} for n in range(4)]
    said = "ids are numbers of rows, not the file names in image.path, because"
    for cells, why in (
        ([*rows[:2], None, *rows[2:]], "row 2 of t.parquet has none"),
        ([*rows, {"bytes": PNG, "path": ""}], "row 4 of t.parquet has none"),
        ([*rows, rows[0]], "two rows have the same"),
    ):
        source, _ = plan(parquet(tmp_path / "t.parquet", image=pa.array(cells, kind)))
        assert f"{said} {why}" in notes(source) and source.config.id_column is None
    for cells in (rows, [{"bytes": PNG, "path": None}, None]):
        assert said not in notes(plan(parquet(tmp_path / "t.parquet", image=pa.array(cells, kind)))[0])
    parquet(tmp_path / "d/0.parquet", image=pa.array(rows, kind))
    parquet(tmp_path / "d/1.parquet", image=[PNG])
    assert f"{said} 1.parquet has none" in notes(plan(tmp_path / "d")[0])


def test_base64_and_data_uris(folder: Path) -> None:
    rows = [{"image": TEXT_PNG, "label": n} for n in range(1500)]
    rows[1] = {"image": f"data:image/png;base64,{TEXT_PNG}", "label": 1}
    rows[2] = {"image": "data:image/png;base64,***", "label": 2}
    rows[3] = {"image": None, "label": 3}
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "t.csv").write_text("image,label\n" + "".join(f'"{row["image"] or ""}",{row["label"]}\n' for row in rows))
    parquet(folder / "t.parquet", image=[row["image"] for row in rows], label=[row["label"] for row in rows])
    for name in ("t.jsonl", "t.csv", "t.parquet"):
        source, planned = plan(folder / name)
        assert [row.inputs for row in planned] == ([1500] if name == "t.parquet" and len(planned) == 1 else [1000, 500]), name
        found = records(folder / name)
        assert [record.sample_id for record in found] == [f"{name}#{n}" for n in range(1500)]
        assert isinstance(found[2], FailedRecord) and found[2].error.reason is Reason.BAD_URI
        assert isinstance(found[3], AbsentRecord)
        good = [record for n, record in enumerate(found) if n not in (2, 3)]
        assert all(isinstance(record, ImageRecord) and record.data == PNG for record in good)
        assert [record.label for record in good] == [n for n in range(1500) if n not in (2, 3)]
        assert source.summary.newer_inputs
        for options in ({"no_labels": True}, {"label_from": "none"}):
            assert all(getattr(record, "label", None) is None for record in records(folder / name, **options))


@pytest.mark.parametrize("name", ["images", "image", "jpg"])
def test_lists_of_images_are_refused_with_their_type(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"column {name} is of type .*list.*one row|column {name} is of type .*list"):
        plan(parquet(tmp_path / "t.parquet", **{name: [[PNG], [PNG, PNG]], "url": ["https://h.example/1", "https://h.example/2"]}))
    assert len(plan(tmp_path / "t.parquet", image_column="url")[1]) == 2


def test_arrays_of_pixels_are_refused_with_their_type(tmp_path: Path) -> None:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(SourceError, match="tensor"):
        plan(parquet(tmp_path / "t.parquet", image=tensor, label=[0, 1]))
    with pytest.raises(SourceError, match="list"):
        plan(parquet(tmp_path / "u.parquet", image=[[[0, 1]], [[2]]], path=["a", "b"]))


def test_hive_partitions_are_columns(tmp_path: Path) -> None:
    for name in ("cat", "dog%20x", "__HIVE_DEFAULT_PARTITION__"):
        parquet(tmp_path / f"b/label={name}/part-0.parquet", image=[PNG, PNG])
        parquet(tmp_path / f"u/label={name}/part-0.parquet", path=["1.png"])
        (tmp_path / f"c/label={name}").mkdir(parents=True)
        (tmp_path / f"c/label={name}/part-0.csv").write_text("path,n\n1.png,2\n")
    assert sorted(labels(tmp_path / "b"), key=str) == [None, None, "cat", "cat", "dog x", "dog x"]
    assert plan(tmp_path / "b")[0].summary.newer_inputs
    for form in ("u", "c"):
        assert sorted((row.label for row in plan(tmp_path / form)[1]), key=str) == [None, "cat", "dog x"]
    assert {row.meta["label"] for row in plan(tmp_path / "c", meta=("label",), no_labels=True)[1]} == {None, "cat", "dog x"}
    for number in (3, 4):
        parquet(tmp_path / f"n/label={number}/part-0.parquet", image=[PNG])
    assert sorted(labels(tmp_path / "n")) == [3, 4]


def test_empty_groups_and_tables(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", image=[PNG], label=[1])
    parquet(tmp_path / "b.parquet", image=pa.array([], pa.binary()), label=pa.array([], pa.null()))
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(tmp_path / "c.parquet", schema) as writer:
        writer.write_table(schema.empty_table())
        writer.write_table(pa.table({"image": [PNG], "label": [2]}))
    assert labels(tmp_path) == [1, 2]


# Labels and meta


@pytest.mark.parametrize(
    ("values", "expected", "note"),
    [
        (pa.array([1.0, 0.0, None, float("nan")]), [1, 0, None, None], "floats"),
        (pa.array([1.0, 0.5]), ["1", "0.5"], "floats"),
        (pa.array([True, False, None]), ["true", "false", None], "bools"),
        (pa.array([Decimal("1.00"), Decimal("2.50")]), ["1", "2.5"], "decimals"),
        (pa.array([Decimal("1.00"), Decimal("2.00")]), [1, 2], "decimals"),
        (pa.array(["b", "a"]).dictionary_encode(), ["b", "a"], "labels: column label, text"),
        (pa.array([" cat", "cat"]), [" cat", "cat"], "1 class begins or ends with spaces, such as ' cat'"),
        (pa.array(["NA", "cat", ""]), ["NA", "cat", None], "'NA' .1 input. may mean that there is none"),
        (pa.array([-1, 2]), [-1, 2], "label -1 .1 input. often means"),
        (pa.array(["7", "8"]), ["7", "8"], "they are kept as text"),
        (pa.array([1 << 63, 1], pa.uint64()), [str(1 << 63), "1"], "text"),
        (pa.array(["é", unicodedata.normalize("NFD", "é")]), ["é", unicodedata.normalize("NFD", "é")], "text"),
    ],
)
def test_each_kind_of_label_has_one_rule(values: pa.Array, expected: list[Any], note: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", image=[numbered(n) for n in range(len(values))], label=values)
    source, _ = plan(path)
    assert labels(path) == expected
    assert re.search(note, notes(source)), notes(source)
    uris = parquet(tmp_path / "u.parquet", path=[f"{n}.png" for n in range(len(values))], label=values)
    source, rows = plan(uris)
    kind = source.summary.label_type
    assert [row.label if row.label is None or kind == "int64" else str(row.label) for row in rows] == expected


def test_texts_of_whole_floats_are_whole_numbers(folder: Path) -> None:
    (folder / "b.csv").write_text(f"image,label\n{TEXT_PNG},1.0\n{TEXT_PNG},3\n{TEXT_PNG},\n")
    assert labels(folder / "b.csv") == [1, 3, None], "a worker reads the labels as planning understood them"
    (folder / "t.csv").write_text("path,label\n1.png,1.0\n2.png,0.0\n3.png,\n")
    assert [row.label for row in plan(folder / "t.csv")[1]] == [1, 0, None]
    (folder / "t.csv").write_text("path,label\n" + "1.png,1.0\n" * 4100 + "1.png,cat\n")
    with pytest.raises(SourceError, match=r"row 4100: the label is 'cat'.*--as-text"):
        plan(folder / "t.csv")
    source, rows = plan(folder / "t.csv", as_text=True)
    assert (rows[0].label, rows[-1].label, source.summary.label_type) == ("1.0", "cat", "string")


def hugging_face(place: Path, numbers: list[Any], names: list[str] | None, /, **columns: Any) -> Path:
    table = pa.table({"label": numbers, **columns})
    if names is not None:
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(about).encode()})
    place.parent.mkdir(exist_ok=True)
    pq.write_table(table, place)
    return place


def test_class_names_of_a_schema(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "t.parquet", [1, 0, -1, None], ["dog", "cat"], image=[numbered(n) for n in range(4)])
    source, _ = plan(path)
    assert labels(path) == ["cat", "dog", None, None]
    assert (source.summary.class_order, source.summary.label_type) == (("dog", "cat"), "string")
    assert dict(source.summary.classes) == {"cat": 1, "dog": 1} and source.summary.newer_inputs
    assert labels(path, rules=2) == [1, 0, -1, None]
    uris = hugging_face(tmp_path / "u.parquet", [1, 0, -1, None], ["dog", "cat"], path=[f"{n}.png" for n in range(4)])
    assert [row.label for row in plan(uris)[1]] == ["cat", "dog", None, None]


def test_class_names_that_tables_do_not_share_are_not_taken(tmp_path: Path) -> None:
    hugging_face(tmp_path / "d/0.parquet", [1, 0], ["dog", "cat"], image=[numbered(0), numbered(1)])
    hugging_face(tmp_path / "d/1.parquet", [1, 0], None, image=[numbered(2), numbered(3)])
    source, _ = plan(tmp_path / "d")
    assert labels(tmp_path / "d") == [1, 0, 1, 0] and "not the same in all tables" in notes(source)
    with pytest.raises(SourceError, match="not the same in all tables"):
        plan(tmp_path / "d", as_text=True)


def test_tables_in_a_store(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    table = pa.table({"image": [{"bytes": numbered(0), "path": "a"}, {"bytes": numbered(1), "path": "b"}], "label": [1.0, None]})
    pq.write_table(table, tmp_path / "0.parquet")
    pyarrow.feather.write_feather(table, str(tmp_path / "0.feather"), compression="uncompressed")
    with pa.OSFile(str(tmp_path / "0.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    for name in ("parquet", "feather", "arrow"):
        for number in range(3):
            store.pipe_file(f"/forms-{name}/{number}.{name}", (tmp_path / f"0.{name}").read_bytes())
    for name in ("parquet", "feather"):
        found = records(f"memory://forms-{name}")
        assert [(record.data, record.label) for record in found] == [(numbered(0), 1), (numbered(1), None)] * 3
        assert [record.sample_id for record in found] == [f"{n // 2}.{name}#{n % 2}" for n in range(6)]
    with pytest.raises(SourceError, match="a stream of Arrow without an index.*copy it to a disk"):
        plan("memory://forms-arrow")
    with pytest.raises(SourceError, match="--image-root is '/data': .* is a local file"):
        store.pipe_file("/forms-csv/t.csv", b"path\na.png\n")
        plan("memory://forms-csv/t.csv", image_root="/data")


def test_lists_of_labels_are_refused_with_the_options(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", image=[PNG, PNG], label=[[1, 3], [2]])
    (tmp_path / "t.jsonl").write_text('{"path": "1.png", "label": [1, 3]}\n{"path": "2.png", "label": [2]}\n')
    for place in (path, tmp_path / "t.jsonl"):
        with pytest.raises(SourceError, match="--label-first .* --meta label"):
            plan(place)
        assert [record.label for record in records(place, label_first=True)] == [1, 2]
        source, rows = plan(place, meta=("label",))
        assert source.summary.label_type is None and source.summary.meta_types == {"label": "string"}
        assert "column label holds lists: the first value is the label" in notes(plan(place, label_first=True)[0])
    assert [record.meta for record in records(path, meta=("label",))] == [{"label": "[1, 3]"}, {"label": "[2]"}]


def test_types_of_meta_widen_and_those_before_follow(tmp_path: Path) -> None:
    rows = [{"path": f"{n}.png", "n": n, "m": n} for n in range(5000)]
    rows += [{"path": "x.png", "n": 0.5, "m": "many"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, planned = plan(tmp_path / "t.jsonl", meta=("n", "m"))
    assert source.summary.meta_types == {"n": "float64", "m": "string"} and source.summary.newer_inputs
    (tmp_path / "spool").mkdir()
    spool = RowSpool(tmp_path / "spool", order_seed=0, keep_order=False)
    spool.extend(planned)
    found = {
        row.path: row.meta
        for table in spool.shards(10_000)
        for row in table_to_rows(table, source.summary.label_type, source.summary.meta_types)
    }
    assert (found["7.png"], found["x.png"]) == ({"n": 7, "m": "7"}, {"n": 0.5, "m": "many"})


def test_meta_of_every_type(tmp_path: Path) -> None:
    columns = {"ts": pa.array([0], pa.timestamp("us")), "box": [{"x": 1}], "cost": [Decimal("1.50")], "list": [[1, 2]]}
    (record,) = records(parquet(tmp_path / "t.parquet", image=[PNG], **columns), meta=tuple(columns))
    assert record.meta == {"ts": "1970-01-01T00:00:00", "box": '{"x": 1}', "cost": "1.50", "list": "[1, 2]"}


def test_columns_that_are_half_null_are_a_doubt(folder: Path) -> None:
    (folder / "t.csv").write_text("path,label,note\n1.png,cat,\n2.png,,\n")
    source, _ = plan(folder / "t.csv", meta=("note",))
    assert [doubt.sentence for doubt in source.summary.doubts] == [
        "column label is null in 1 of 2 rows",
        "column note is null in 2 of 2 rows",
    ]


# Paths


def test_image_root_and_path_template(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tables = tmp_path_factory.mktemp("tables")
    (tables / "t.csv").write_text("id,path\n1,1.png\n2,cat/../2.png\n")
    found = records(tables / "t.csv", image_root=str(folder))
    assert [record.data for record in found] == [PNG, PNG]
    assert "outside" not in notes(plan(tables / "t.csv", image_root=str(folder))[0])
    (tables / "t.csv").write_text("id,path\n1,../../../etc/passwd\n")
    assert "1 row names files outside" in notes(plan(tables / "t.csv", image_root=str(folder))[0])
    (folder / "t.csv").write_text("id,path\n1,1.png\n")
    assert [row.path for row in plan(folder / "t.csv", image_root="cat")[1]] == ["cat/1.png"]
    assert [row.path for row in plan(folder / "t.csv", path_template="cat/{id}.png")[1]] == ["cat/1.png"]
    assert [row.path for row in plan(folder / "t.csv", path_template="{id}.png", image_root="cat")[1]] == ["cat/1.png"]
    (folder / "half.jsonl").write_text('{"id": 1, "k": "a"}\n{"id": null, "k": "b"}\n')
    source, rows = plan(folder / "half.jsonl", path_template="cat/{id}.png")
    assert [(row.kind, row.path) for row in rows] == [("file", "cat/1.png"), ("absent", "")]
    assert [row.path for row in plan(folder / "t.csv", image_root="https://h.example/a")[1]] == ["https://h.example/a/1.png"]
    for options, message in (
        ({"image_root": "nope"}, "no such folder"),
        ({"path_template": "{nope}.png"}, "--path-template names 'nope'"),
        ({"path_template": "x.png"}, "expected a path with names of columns"),
        ({"path_template": "{id:>3}.png"}, "without formats"),
        ({"path_template": "{id.__class__}"}, "--path-template names"),
        ({"path_template": "{id}.png", "image_column": "path"}, "expected one of the two"),
        ({"image_root": "gopher://h.example/x"}, "--image-root"),
    ):
        with pytest.raises(SourceError, match=message):
            plan(folder / "t.csv", **options)


def test_ways_to_write_a_path(folder: Path) -> None:
    nfd = unicodedata.normalize("NFD", "é.png")
    mixed = f"{unicodedata.normalize('NFD', 'ü')}/ö.png"  # macOS made the folder, another system the file
    (folder / nfd).write_bytes(PNG)
    (folder / mixed).parent.mkdir()
    (folder / mixed).write_bytes(PNG)
    (folder / "a b.png").write_bytes(PNG)
    (folder / "x\\y.png").write_bytes(PNG)
    url = f"file://{folder}/a%20b.png"
    (folder / "t.csv").write_text(f"path\ncat\\1.png\né.png\n{url}\nx\\y.png\n./1.png\n.\\2.png\nü/ö.png\n")
    source, rows = plan(folder / "t.csv")
    assert [row.path for row in rows] == ["cat/1.png", nfd, f"{folder}/a b.png", "x\\y.png", "1.png", "2.png", mixed]
    assert all(isinstance(record, ImageRecord) for record in records(folder / "t.csv"))
    assert "backslashes in 2 paths" in notes(source)
    assert [row.path for row in plan(folder / "t.csv", rules=2)[1]][0] == "cat\\1.png"


def test_paths_that_lack_a_folder_or_an_extension_are_a_doubt(folder: Path) -> None:
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/0a1.jpg").write_bytes(PNG)
    (folder / "t.csv").write_text("id\n0a1\n")
    (doubt,) = plan(folder / "t.csv", image_column="id")[0].summary.doubts
    assert "'deep/er/{id}.jpg'" in doubt.option
    (folder / "u.csv").write_text("path\ner/0a1.jpg\n")
    (doubt,) = plan(folder / "u.csv")[0].summary.doubts
    assert "--image-root deep" in doubt.option


# Splits


def test_a_second_column_of_images_is_said(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", image=[numbered(0)], mask=[numbered(1)])
    assert "images in column mask would not be taken: --image-column NAME takes another column than image" in notes(plan(path)[0])
    assert "would not be taken" not in notes(plan(path, image_column="mask")[0])


def test_paths_of_another_machine_are_a_doubt_with_a_way(folder: Path) -> None:
    (folder / "t.csv").write_text("path,label\nC:\\data\\1.png,cat\nC:\\data\\2.png,dog\n")
    source, _ = plan(folder / "t.csv")
    (doubt,) = source.summary.doubts
    assert "none of the first 2 images is there, such as C:/data/1.png" in doubt.sentence
    assert re.search("tokenize the folder of (cat/)?[12].png with --label-from file:TABLE", doubt.option)


def test_a_split_column(tmp_path: Path) -> None:
    splits = ["train", "val", "train", "validation", None]
    parquet(tmp_path / "t.parquet", image=[numbered(n) for n in range(5)], split=splits)
    (tmp_path / "t.csv").write_text("path,split\n" + "".join(f"{n}.png,{split or ''}\n" for n, split in enumerate(splits)))
    for name in ("t.parquet", "t.csv"):
        source, _ = plan(tmp_path / name)
        assert dict(source.summary.splits) == {"train": 2, "val": 2}
        found = [record for record in records(tmp_path / name, split="val") if not isinstance(record, LeftOutRecord)]
        assert [record.sample_id for record in found] == [f"{name}#1", f"{name}#3"]
        source, rows = plan(tmp_path / name, split="val")
        assert sum(row.inputs for row in rows) == 2 and source.summary.left_out["of another split"].count == 3
        with pytest.raises(SourceError, match=rf"/{name}: no row is of the split 'test', .* there are train, val\. Give one"):
            plan(tmp_path / name, split="test")
    (tmp_path / "own.csv").write_text("path,split\n1.png,Fold 1\n2.png,\n3.png,train\n")
    with pytest.raises(SourceError, match="there are train, fold 1"):
        plan(tmp_path / "own.csv", split="vall")
    with pytest.raises(SourceError, match="no column `split`"):
        (tmp_path / "u.csv").write_text("path\n1.png\n")
        plan(tmp_path / "u.csv", split="val")


def test_options_that_tables_cannot_use_are_refused(folder: Path) -> None:
    (folder / "t.csv").write_text("path\n1.png\n")
    for options in ({"image_member": "jpg"}, {"key_column": "path"}, {"label_from": "parent"}, {"tar_key": "last-dot"}):
        with pytest.raises(SourceError, match="Leave"):
            plan(folder / "t.csv", **options)
    source, _ = plan(folder / "t.csv", label_from="none")
    assert "no labels, as --label-from none asks" in notes(source)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "u.csv"])
def test_labels_of_a_split_are_counted_alone_and_of_the_type_of_all(name: str, tmp_path: Path) -> None:
    cells = [("train", "cat"), ("val", "1"), ("train", "7")]
    image, column = ([TEXT_PNG] * 3, "image") if name == "t.csv" else ([f"{n}.png" for n in range(3)], "path")
    if name == "t.parquet":
        parquet(
            tmp_path / name, image=[numbered(n) for n in range(3)], split=[cell[0] for cell in cells], label=[cell[1] for cell in cells]
        )
    else:
        lines = [f"{image[n]},{split},{label}" for n, (split, label) in enumerate(cells)]
        (tmp_path / name).write_text("\n".join([f"{column},split,label", *lines]))
    source, _ = plan(tmp_path / name, split="val")
    assert (dict(source.summary.classes), source.summary.label_type) == ({"1": 1}, "string"), "train has words"


def test_splits_of_a_column_are_the_splits_of_the_source(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", image=[numbered(n) for n in range(3)], split=["train", "val", "train"])
    assert list(splits_of_source(str(path), SourceConfig())) == ["train", "val"]
    path = parquet(tmp_path / "t.parquet", image=[numbered(n) for n in range(3)], split=["train", "val", None])
    with pytest.raises(DoubtError, match="1 row is of no split"):
        splits_of_source(str(path), SourceConfig())
