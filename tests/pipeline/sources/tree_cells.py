"""What random tables are made of: label columns of every type, ways to write a path, and how each format is written."""

from __future__ import annotations

import csv
import gzip
import io
import json
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

from tests.pipeline.sources.tree_grammar import Stated, Tree, text, whole

__all__ = [
    "COLUMNS",
    "IN_COLUMNS",
    "IN_JSON",
    "IN_TEXT",
    "PATHS",
    "TEXTS",
    "Labels",
    "labels",
    "name_of_label",
    "write_columns",
    "write_text",
]

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


def class_names(*names: str) -> dict[bytes, bytes]:
    """Return the metadata with which Hugging Face names the classes of a column `label`."""
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
    "classes": Labels([(0, text("owl")), (1, text("cat")), (-1, None), (None, None)], pa.int64(), class_names("owl", "cat"), True),
}
IN_TEXT = {
    "whole": Labels([(n, whole(n)) for n in (0, 3, 7)] + [("", None)]),
    "words": Labels([(word, text(word)) for word in ("cat", "big dog", "NA", "é", "it's 5\" wide", "a,b;c|d")] + [("", None)]),
    "zeros": Labels([("007", text("007")), ("010", text("010"))]),
    "floats": Labels([("1.0", (1, "1.0")), ("2.0", (2, "2.0")), ("", None)]),
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


SAME_TYPES = {
    pa.string(): [pa.string(), pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    pa.binary(): [pa.binary(), pa.binary(), pa.large_binary(), pa.binary_view()],
}
"""Types of Arrow that hold the same."""


def write_columns(tree: Tree, name: str, columns: dict[str, tuple[Any, Any]], metadata: dict[bytes, bytes] | None = None) -> str:
    """Write Parquet or Arrow by the extension of the name; `columns` are values and types. Row groups have any number of rows, or all."""
    columns = {column: (values, tree.one(SAME_TYPES.get(kind, [kind]))) for column, (values, kind) in columns.items()}
    fields = [pa.field(column, kind) for column, (_, kind) in columns.items()]
    arrays = [pa.array(values, kind) for values, kind in columns.values()]
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))
    path = tree.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    size = len(table) if tree.chance(0.5) else tree.random.randint(1, len(table))
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
        tree.local |= make is pa.ipc.new_stream
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
