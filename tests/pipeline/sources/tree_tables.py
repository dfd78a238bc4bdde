"""Random tables: every format, images in cells and paths to them, labels of every type, absent images, splits, partitions, ids."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import zstandard

from tests.pipeline.sources.tree_grammar import Maker, Stated, Tree, text, whole

__all__ = ["TABLES"]

COLUMNS = ["parquet", "parquet", "arrow", "feather"]
TEXTS = ["csv", "tsv", "semicolon", "bar", "jsonl", "ndjson", "json"]
Cells = list[tuple[Any, Stated]]


@dataclass
class Labels:
    """A kind of label column: its cells, with what the rule makes of each."""

    cells: Cells
    type: Any = None
    metadata: dict[bytes, bytes] = field(default_factory=dict)
    plain_name: bool = False
    """Whether the column has to be called `label`."""


def _class_names(*names: str) -> dict[bytes, bytes]:
    features = {"label": {"names": list(names), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


IN_COLUMNS = {
    "whole": Labels([(n, whole(n)) for n in (0, 3, 7)] + [(None, None)], pa.int64()),
    "small": Labels([(n, whole(n)) for n in (-1, 2)], pa.int8()),
    "words": Labels([(word, text(word)) for word in ("cat", " dog ", "NA", "7", "é")] + [("", None), (None, None)], pa.string()),
    "large words": Labels([("cat", text("cat")), ("dog", text("dog"))], pa.large_string()),
    "floats": Labels([(1.0, whole(1)), (2.0, whole(2)), (float("nan"), None), (None, None)], pa.float64()),
    "fractions": Labels([(1.0, whole(1)), (2.5, text("2.5"))], pa.float64()),
    "decimals": Labels([(Decimal("1.00"), whole(1)), (Decimal("2.50"), text("2.5"))], pa.decimal128(10, 2)),
    "bools": Labels([(True, text("true")), (False, text("false"))], pa.bool_()),
    "dates": Labels([(date(2024, 1, 2), text("2024-01-02"))], pa.date32()),
    "dictionary": Labels([("cat", text("cat")), ("dog", text("dog")), (None, None)], pa.dictionary(pa.int32(), pa.string())),
    "classes": Labels([(0, text("owl")), (1, text("cat")), (-1, None), (None, None)], pa.int64(), _class_names("owl", "cat"), True),
}
IN_TEXT = {
    "whole": Labels([(n, whole(n)) for n in (0, 3, 7)] + [("", None)]),
    "words": Labels([(word, text(word)) for word in ("cat", "big dog", "NA", "é", "it's 5\" wide", "a,b;c|d")] + [("", None)]),
    "zeros": Labels([("007", text("007")), ("010", text("010"))]),
    "floats": Labels([("1.0", whole(1)), ("2.0", whole(2)), ("", None)]),
}
IN_JSON = {
    "whole": Labels([(n, whole(n)) for n in (0, 3, 7)] + [(None, None)]),
    "words": Labels([(word, text(word)) for word in ("cat", " dog ", "7", "é")] + [("", None), (None, None)]),
    "floats": Labels([(1.0, whole(1)), (2.0, whole(2)), (None, None)]),
    "fractions": Labels([(1.0, whole(1)), (2.5, text("2.5"))]),
    "bools": Labels([(True, text("true")), (False, text("false"))]),
    "mixed": Labels([(1, whole(1)), ("many", text("many"))]),
    "objects": Labels([({"b": 1, "a": 2}, None)], plain_name=True),
}


def write_columns(tree: Tree, name: str, columns: dict[str, tuple[Any, Any]], metadata: dict[bytes, bytes] | None = None) -> str:
    """Write Parquet or Arrow by the extension of the name; `columns` are values and types. Row groups have any number of rows."""
    fields = [pa.field(column, kind) for column, (_, kind) in columns.items()]
    arrays = [pa.array(values, kind) for values, kind in columns.values()]
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))
    path = tree.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    size = tree.random.randint(1, len(table) + 1)
    if name.endswith("parquet"):
        with pq.ParquetWriter(path, table.schema) as writer:
            for start in range(0, len(table), size):
                writer.write_table(table.slice(start, size))
                if tree.chance(0.2):
                    writer.write_table(table.slice(0, 0))  # an empty row group
    elif name.endswith("feather"):
        pyarrow.feather.write_feather(table, path, chunksize=size, compression=tree.one(["zstd", "uncompressed"]))
    else:
        make = tree.one([pa.ipc.new_file, pa.ipc.new_stream])
        with make(path, table.schema) as out:
            out.write_table(table, max_chunksize=size)
    return name


def write_text(tree: Tree, stem: str, form: str, rows: list[dict[str, Any]], *, header: bool = True) -> str:
    """Write rows as text: with blank lines, CRLF, marks of encodings, compressed. Return the name."""
    blank = tree.one(["", "", "\n"])
    if form in ("jsonl", "ndjson", "json"):
        lines = [json.dumps(row, ensure_ascii=tree.chance(0.5)) for row in rows]
        whole_text = f"[{','.join(lines)}]" if form == "json" and (len(rows) < 2 or tree.chance(0.7)) else f"\n{blank}".join(lines) + "\n"
        ending = form
    else:
        delimiter, ending = {"csv": (",", "csv"), "tsv": ("\t", "tsv"), "semicolon": (";", "csv"), "bar": ("|", "csv")}[form]
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
        if header:
            writer.writerow(list(rows[0]))
        for row in rows:
            writer.writerow(["" if value is None else value for value in row.values()])
        whole_text = out.getvalue().replace("\n", f"\n{blank}")
    if tree.chance(0.3):
        whole_text = whole_text.replace("\n", "\r\n")
    data = whole_text.encode(tree.one(["utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    pack, more = tree.one([(bytes, ""), (bytes, ""), (gzip.compress, ".gz"), (zstandard.compress, ".zst")])
    return tree.write(f"{stem}.{ending}{more}", pack(data))


def labels(tree: Tree, kinds: dict[str, Labels]) -> Labels:
    """Return a kind of label column."""
    return tree.one(list(kinds.values()))


def name_of_label(tree: Tree) -> str:
    """Return the name of a label column, and ask for it where nobody would look."""
    name = tree.one(["label", "class", "cls", "target", "category", "Label", "breed"])
    if name == "breed":
        tree.options["label"] = name
    return name


def bytes_in_columns(tree: Tree) -> None:
    """Images in binary cells or in structs with their path, with nulls, over several files."""
    kind, column = tree.one(COLUMNS), labels(tree, IN_COLUMNS)
    label_name = "label" if column.plain_name else name_of_label(tree)
    shape = tree.one(["binary", "large_binary", "struct", "struct with paths"])
    image_name = tree.one(["image", "img", "jpg", "image_bytes", "strange"])
    has_status, split_by = tree.chance(0.2), tree.chance(0.15)
    no_labels, paths = tree.chance(0.1), tree.one(["once", "twice", "partly"])
    asked = tree.one(["train", "val", "all"]) if split_by else ""
    if split_by:
        tree.options |= {"split": asked}
        tree.settles, tree.stops = ("split",), "--split"
    if no_labels:
        tree.options |= {"no_labels": True}
        tree.options.pop("label", None)
    files, outside, all_named = tree.random.randint(1, 3), 0, shape.startswith("struct")
    named: list[tuple[str, str, bytes, Stated]] = []
    for number in range(files):
        place = f"{tree.one(['', 'data/', 'é/'])}t{number}.{kind}"
        images: list[Any] = []
        cells, statuses, splits = [], [], []
        for row in range(tree.random.randint(4, 9)):
            cell, stated = tree.one(column.cells)
            data: bytes | None = tree.image(broken=0.1)
            absent = row > 1 and tree.chance(0.1)
            split = "train" if row == 0 else "validation" if row == 1 else tree.one(["train", "validation"])
            path = f"{'same' if paths == 'twice' else tree.number()}.jpg"
            lies_outside = shape == "struct with paths" and not outside and tree.chance(0.2)
            if lies_outside and not absent:
                path, outside = f"out{tree.number()}.png", 1  # one alone, or the images beside the table hold more bytes than it
                tree.write(f"{place.rpartition('/')[0]}/{path}".lstrip("/"), data or b"")
            status = "success"
            if absent and has_status and tree.chance(0.5):
                status, absent_cell = "failed_to_download", data
            else:
                absent_cell = None
            shown = absent_cell if absent else None if lies_outside else data
            if paths == "partly" and row == 0:
                path = ""
                shown = data
                lies_outside = False
            if shape in ("binary", "large_binary"):
                images.append(absent_cell if absent else data)
            else:
                images.append(
                    None
                    if absent and absent_cell is None and tree.chance(0.5)
                    else {"bytes": shown, "path": None if absent else path or None}
                )
            all_named = all_named and bool(path) and not absent
            cells.append(cell)
            statuses.append(status)
            splits.append(split)
            if split_by and asked not in ("all", "val" if split == "validation" else split):
                tree.left_out["another split"] += 1
            elif absent:
                tree.absent += 1
            else:
                named.append((path, f"{place}#{row}", data or b"", None if no_labels else stated))
                continue
            tree.pool.append(None if no_labels else stated)
        binary = pa.large_binary() if shape == "large_binary" else pa.binary()
        image_type = binary if shape in ("binary", "large_binary") else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns: dict[str, tuple[Any, Any]] = {
            image_name: (images, image_type),
            label_name: (cells, column.type),
            "other": ([1] * len(cells), pa.int32()),
        }
        if has_status:
            columns["status"] = (statuses, pa.string())
        if split_by:
            columns["split"] = (splits, pa.string())
        write_columns(tree, place, columns, column.metadata or None)
    once = all_named and paths == "once"
    for path, row_id, data, stated in named:
        tree.expect(path if once else row_id, data, stated)
    if outside:
        tree.left_out[".png"] += outside
    tree.write_junk()


def encoded_in_text(tree: Tree) -> None:
    """Images in base64 or as data: URIs."""
    form, style = tree.one(TEXTS), tree.one(["base64", "uri"])
    column = labels(tree, IN_JSON if form in ("jsonl", "ndjson", "json") else IN_TEXT)
    label_name, rows = "label" if column.plain_name else name_of_label(tree), []
    expected: list[tuple[bytes, Stated]] = []
    for _ in range(tree.random.randint(3, 8)):
        data, (cell, stated) = tree.image(broken=0.0), tree.one(column.cells)
        body = base64.b64encode(data).decode()
        rows.append({"image": body if style == "base64" else f"data:image/png;base64,{body}", label_name: cell})
        expected.append((data, stated))
    if tree.chance(0.3):
        rows.append({"image": None, label_name: column.cells[0][0]})
        tree.pool.append(column.cells[0][1])
        tree.absent += 1
    name = write_text(tree, "t", form, rows)
    for number, (data, stated) in enumerate(expected):
        tree.expect(f"{name}#{number}", data, stated)


PathStyle = Callable[[Tree, str], str]


def _other_form(name: str) -> str:
    form = unicodedata.normalize("NFD", name)
    return form if form != name else unicodedata.normalize("NFC", name)


PATHS: dict[str, PathStyle] = {
    "relative": lambda tree, name: name,
    "absolute": lambda tree, name: str(tree.root / name),
    "dotted": lambda tree, name: f"./x/../{name}",
    "backslashes": lambda tree, name: name.replace("/", "\\"),
    "other form": lambda tree, name: _other_form(name),
    "file URL": lambda tree, name: f"file://{quote(str(tree.root / name))}",
}


def paths(tree: Tree) -> None:
    """Paths to images in every format and style of writing; some are missing, and images that no row names are no inputs."""
    form, style = tree.one([*TEXTS, *COLUMNS]), tree.one(list(PATHS))
    of_columns = form in COLUMNS
    column = labels(tree, IN_COLUMNS if of_columns else IN_JSON if form in ("jsonl", "ndjson", "json") else IN_TEXT)
    label_name = "label" if column.plain_name else name_of_label(tree)
    image_name = tree.one(["path", "image", "url", "file_name", "Filename", "strange"])
    if image_name == "strange":
        tree.options["image_column"] = image_name
    ids, splits = tree.chance(0.3), tree.chance(0.15)
    asked = tree.one(["train", "val", "all"]) if splits else ""
    rooted, folder = tree.chance(0.2) and style in ("relative", "backslashes", "other form"), tree.one(["", "tables/"])
    rows: list[dict[str, Any]] = []
    expected: list[tuple[int, str, bytes | None, Stated]] = []
    for number in range(tree.random.randint(3, 9)):
        base = f"{tree.folder(2)}{tree.one(['{n}', 'img {n}', 'é{n}', '#{n}']).format(n=tree.number())}.{tree.extension()}"
        cell, stated = tree.one(column.cells)
        data: bytes | None = tree.image(broken=0.1)
        missing, absent = number > 1 and tree.chance(0.1), number > 1 and tree.chance(0.1)
        place = f"pics/{base}" if rooted else base if style in ("absolute", "file URL") else f"{folder}{base}"
        if not missing:
            tree.write(place, data or b"")
        shown = None if absent else PATHS[style](tree, base if style not in ("absolute", "file URL") else place)
        row: dict[str, Any] = {image_name: shown, label_name: cell}
        if ids:
            row["key"] = f"id{number}"
        split = "train" if number == 0 else "val" if number == 1 else tree.one(["train", "val"])
        if splits:
            row["split"] = split
        if tree.chance(0.5):
            row = dict(sorted(row.items()))
        rows.append({name: row[name] for name in rows[0]} if rows else row)
        if splits and asked not in (split, "all"):
            tree.left_out["another split"] += 1
            continue
        expected.append((number, f"id{number}", None if absent else data if not missing else b"", stated))
    if ids:
        tree.options["id_column"] = "key"
    if splits:
        tree.options |= {"split": asked}
        tree.settles, tree.stops = ("split",), "--split"
    if rooted:
        tree.options["image_root"] = tree.one(["../pics" if folder else "pics", str(tree.root / "pics")])
    if of_columns:
        types = {image_name: pa.string(), label_name: column.type}
        columns = {name: ([row[name] for row in rows], types.get(name, pa.string())) for name in rows[0]}
        tree.named = write_columns(tree, f"{folder}t.{form}", columns, column.metadata or None)
    else:
        tree.named = write_text(tree, f"{folder}t", form, rows)
    name = os.path.basename(tree.named)
    for number, key, found, stated in expected:
        sample_id = key if ids else f"{name}#{number}"
        if found is None:
            tree.absent += 1
            tree.pool.append(stated)
        elif found == b"":
            tree.bad[sample_id, "missing"] += 1
            tree.pool.append(stated)
        else:
            tree.expect(sample_id, found, stated)


def templates(tree: Tree) -> None:
    """The path is made from columns."""
    rows, folder = [], tree.one(["train", "a b"])
    for number in range(5):
        data, word = tree.image(), tree.one(["cat", "dog"])
        tree.write(f"{folder}/{word}/{number}.jpg", data)
        rows.append({"id": number, "label": word})
        tree.rows.append((str(number), data, text(word)))
    tree.named = write_text(tree, "t", tree.one(["csv", "jsonl", "tsv"]), rows)
    tree.rows = [(f"{tree.named}#{number}", data, label) for number, data, label in tree.rows]
    tree.options, tree.settles = {"path_template": f"{folder}/{{label}}/{{id}}.jpg"}, ("path_template",)
    tree.stops = "--path-template"


def lists(tree: Tree) -> None:
    """Lists of paths, and tables without a header."""
    form = tree.one(["list", "labelled list", "csv", "csv turned"])
    lines: list[str] = []
    for number in range(tree.random.randint(3, 7)):
        data, label = tree.image(broken=0.1), tree.random.randrange(4)
        name = tree.write(f"{tree.one(['', 'a/', 'v1.0/'])}{tree.number()}.png", data)
        lines.append({"list": name, "labelled list": f"{name} {label}", "csv": f"{name},{label}", "csv turned": f"{label},{name}"}[form])
        ending = "csv" if form.startswith("csv") else "txt"
        tree.expect(f"t.{ending}#{number}", data, None if form == "list" else whole(label))
        if tree.chance(0.2):
            lines.append("")
    tree.named = tree.write(f"t.{ending}", tree.one(["\n", "\r\n"]).join(lines).encode())


def partitions(tree: Tree) -> None:
    """Folders such as `label=cat` are a column."""
    words = tree.one([["cat", "big dog"], ["3", "4"]])
    stated = [whole(int(word)) if word.isdigit() else text(word) for word in words]
    for word, label in zip(words, stated, strict=True):
        for part in range(tree.random.randint(1, 2)):
            place, images = f"label={quote(word)}/part-{part}.parquet", [tree.image(broken=0.1) for _ in range(3)]
            write_columns(tree, place, {"image": (images, pa.binary())})
            for number, data in enumerate(images):
                tree.expect(f"{place}#{number}", data, label)


def splits(tree: Tree) -> None:
    """Tables of several splits are not mixed without a word."""
    asked = tree.one(["train", "test", "all", "pattern"])
    for split in ("train", "test"):
        images = [tree.image() for _ in range(3)]
        name = f"{split}-00000-of-00001.parquet" if tree.chance(0.5) else f"{split}/0.parquet"
        write_columns(tree, name, {"image": (images, pa.binary()), "label": ([1, 2, 3], pa.int64())})
        if asked == "pattern" and split == "train":
            tree.named = name
        if asked in (split, "all") or (asked == "pattern" and split == "train"):
            shown = os.path.basename(name) if asked == "pattern" else name
            for number, data in enumerate(images):
                tree.expect(f"{shown}#{number}", data, whole(number + 1))
        elif asked != "pattern":
            tree.left_out["another split"] += 1
    if asked != "pattern":
        tree.options, tree.settles, tree.stops = {"split": asked}, ("split",), "--split"


def refused(tree: Tree) -> None:
    """What a table may not hold is refused with the option that helps, if there is one."""
    kind = tree.one(["list of labels", "list of images", "repeated ids", "captions"])
    images = [tree.image() for _ in range(3)]
    columns: dict[str, tuple[Any, Any]] = {"image": (images, pa.binary())}
    expected: list[Stated] = [None] * 3
    if kind == "list of labels":
        columns["label"] = ([[1, 2], [3], []], pa.list_(pa.int64()))
        tree.options, tree.stops = tree.one([({"label_first": True}, "--label-first"), ({"no_labels": True}, "--no-labels")])
        expected = [whole(1), whole(3), None] if "label_first" in tree.options else expected
    elif kind == "list of images":
        columns["image"] = ([[data] for data in images], pa.list_(pa.binary()))
        tree.stops, tree.never = "Lists of images", True
    elif kind == "repeated ids":
        columns["key"] = (["a", "b", "a"], pa.string())
        tree.options, tree.stops, tree.never = {"id_column": "key"}, "--id-column", True
        write_columns(tree, "t.parquet", columns)
        return
    else:
        images = [tree.image("BMP") for _ in range(104)]
        columns = {"image": (images, pa.binary()), "label": ([f"a caption {n}" for n in range(104)], pa.string())}
        tree.options, tree.stops, expected = {"no_labels": True}, "--no-labels", [None] * 104
    tree.settles = tuple(tree.options)
    write_columns(tree, "t.parquet", columns)
    for number, (data, label) in enumerate(zip(images, expected, strict=True)):
        tree.expect(f"t.parquet#{number}", data, label)


TABLES: list[Maker] = [
    bytes_in_columns,
    bytes_in_columns,
    encoded_in_text,
    paths,
    paths,
    paths,
    templates,
    lists,
    partitions,
    splits,
    refused,
]
