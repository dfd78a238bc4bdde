"""Tables of text: CSV and its kin, lists of paths, JSONL and JSON. Their form is found from the first bytes, alike at planning and work."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Any

from tokenshards.pipeline.errors import shorten
from tokenshards.pipeline.images.decode import image_extensions
from tokenshards.pipeline.sources.summary import extension
from tokenshards.pipeline.storage.object_file import RangeReader, open_stream
from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = ["TextTable", "json_rows", "looks_like_image", "open_text"]

HEAD_BYTES = 1 << 17
"""The form of a table is found from so many of its first bytes."""
MAPPING = ("file_name", "label")
"""Columns of one object of JSON that gives the label of each image by its name."""
MAX_JSON_BYTES = 1 << 29
MAX_CELL = 1 << 28
"""Most characters of a cell; Python's own limit of 131,072 is less than many captions and all images in base64."""
_BLOCK_BYTES = 1 << 20
_COMPRESSED = (".gz", ".zst")
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_PATH_AND_LABEL = re.compile(r"(.*\S)\s+(\S+)\s*")
_DELIMITERS = ",;\t|"
_SHOWN = {"\t": "a tab", ";": "a semicolon", "|": "a bar", " ": "spaces"}
Row = Any
"""A list of cells, or an object of JSON."""


@dataclass(slots=True)
class TextTable:
    """One open table of text."""

    store: Store
    info: ObjectInfo
    kind: str
    """`csv`, `words`, `lines`, `jsonl` or `json`."""
    encoding: str = "utf-8"
    delimiter: str = ","
    quoted: bool = True
    header: bool = True
    names: tuple[str, ...] = ()
    """Columns in the order of the cells; of JSON those of its first rows."""
    usual: tuple[str | None, str | None] = (None, None)
    """Columns of image and label in a table without a header."""
    notes: tuple[str, ...] = ()
    position: int = 0
    """Where the next row begins in the file, while `rows(placed=True)` reads."""

    @property
    def is_json(self) -> bool:
        """Whether rows are objects with names, not lists of cells."""
        return self.kind.startswith("json")

    @property
    def seekable(self) -> bool:
        """Whether reading can begin at the byte of a row."""
        return self.encoding == "utf-8" and self.kind != "json" and not self.info.path.lower().endswith(_COMPRESSED)

    def picker(self, names: tuple[str, ...]) -> Callable[[Row], tuple[Any, ...]]:
        """Return a function from a row to the cells of the named columns."""
        if self.is_json:
            return lambda row: tuple(map(row.get, names))
        places = [self.names.index(name) for name in names]
        if not places:
            return lambda cells: ()
        if len(places) == 1:
            (place,) = places
            return lambda cells: (cells[place],)
        return itemgetter(*places)

    def rows(self, *, placed: bool = False, start: int = 0) -> Iterator[Row]:
        """Yield every row, or those from the byte `start` on; `placed` keeps `position`. Raises what `parsing` turns into SourceError."""
        lines = self._placed_lines(start) if placed or start else self.lines()
        if self.kind == "csv":
            yield from self._csv_rows(lines, self.header and not start)
        elif self.kind == "words":
            count = len(self.names)  # a path may hold spaces, the last word may not
            yield from (_fitted(line.rsplit(None, count - 1), count, number) for number, line in enumerate(lines, 1) if _is_row(line))
        elif self.kind == "lines":
            yield from ([line.rstrip("\r\n")] for line in lines if _is_row(line))
        elif self.kind == "jsonl":
            yield from json_rows(lines)
        else:
            yield from self._array()

    def lines(self) -> Iterator[str]:
        """Yield every line of the file."""
        encoding = "utf-8-sig" if self.encoding == "utf-8" else "utf-16"
        with open_stream(self.store, self.info.path, self.info.size) as stream:
            with io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
                yield from text

    def _placed_lines(self, start: int) -> Iterator[str]:
        if not self.seekable:
            yield from self.lines()
            return
        raw = RangeReader(self.store, self.info.path, self.info.size)
        raw.seek(start)
        self.position = start
        with io.BufferedReader(raw, _BLOCK_BYTES) as stream:
            for line in stream:
                self.position += len(line)
                yield line.removeprefix(codecs.BOM_UTF8).decode() if self.position == len(line) else line.decode()

    def _csv_rows(self, lines: Iterable[str], header: bool) -> Iterator[list[str]]:
        reader = _reader(lines, self.delimiter, self.quoted)
        count, cells = len(self.names), []
        try:
            for cells in reader:
                if header:
                    header = not cells
                elif len(cells) == count:
                    yield cells
                elif cells:
                    yield _fitted(cells, count, reader.line_num)
        except csv.Error as error:
            raise ValueError(
                f"line {reader.line_num}: {error}; expected a quote inside a quoted cell to be doubled, and none in the middle of a cell"
            ) from None

    def _array(self) -> Iterator[dict[str, Any]]:
        if self.info.size > MAX_JSON_BYTES:
            raise ValueError(f"it has {self.info.size} bytes; expected at most {MAX_JSON_BYTES}, or JSONL, which is read row by row")
        value = json.loads("".join(self.lines()))
        if isinstance(value, dict) and value and not any(isinstance(cell, (dict, list)) for cell in value.values()):
            yield from (dict(zip(MAPPING, pair, strict=True)) for pair in value.items())
            return
        if not isinstance(value, list):
            what = f"an object with {', '.join(list(value)[:6])}" if isinstance(value, dict) else shorten(value)
            raise ValueError(f"it is {what}; expected an array of objects, one for each image, or JSONL")
        for number, row in enumerate(value):
            if not isinstance(row, dict):
                raise ValueError(f"row {number} is {shorten(row)}; expected a JSON object")
            yield row


def open_text(store: Store, info: ObjectInfo) -> TextTable:
    """Return a table of text with the form that its first bytes and its name show. Raises what `parsing` turns into SourceError."""
    csv.field_size_limit(MAX_CELL)
    name = info.path.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    table = TextTable(store, info, "json" if name.endswith(".json") else "jsonl" if name.endswith((".jsonl", ".ndjson")) else "csv")
    head, table.encoding = _head(store, info)
    lines = head.splitlines(keepends=True)
    if table.is_json:
        if table.kind == "json" and not head.lstrip().startswith("[") and _is_json_lines(lines):
            table.kind, table.notes = "jsonl", (f"{info.path} holds an object in each line",)
        return table
    shown = [line for line in lines if line.strip()]
    if not shown:
        return table
    if name.endswith(".txt") and (form := _list_form(shown)):
        table.kind, table.header, table.names = form[0], False, form[1]
        table.usual = (table.names[0], table.names[1] if len(table.names) > 1 else None)
        return table
    table.delimiter = "\t" if name.endswith(".tsv") and "\t" in shown[0] else _delimiter(shown[0])
    notes = []
    if table.delimiter != "," and not name.endswith(".tsv"):
        notes.append(f"the delimiter of {info.path} is {_SHOWN[table.delimiter]}")
    try:
        rows = _head_rows(lines, table.delimiter, quoted=True)
    except csv.Error:
        if table.delimiter != "\t":
            raise
        table.quoted = False
        notes.append(f"quotes in {info.path} are part of its cells")
        rows = _head_rows(lines, table.delimiter, quoted=False)
    rows = [row for row in rows if row] or [[]]
    first = [cell.strip() for cell in rows[0]]
    table.names = _distinct(first)
    if again := sorted({name for name in first if name and first.count(name) > 1}):
        notes.append(f"{info.path} has several columns {', '.join(again)}: the first keeps its name, the next is named {again[0]}.2")
    if any(looks_like_image(cell) for cell in first):
        table.header, table.names = False, tuple(str(number) for number in range(1, len(first) + 1))
        table.usual = _usual(rows)
        label = f", the label column {table.usual[1]}" if table.usual[1] else ""
        notes.append(f"{info.path} has no header: its columns are named 1 to {len(first)}; the image is column {table.usual[0]}{label}")
    table.notes = tuple(notes)
    return table


def looks_like_image(cell: str) -> bool:
    """Return whether a text is the path or URL of an image."""
    text = cell.strip()
    return (
        "://" in text[:12] or text.startswith("data:image/") or extension(text.replace("\\", "/").partition("?")[0]) in image_extensions()
    )


def _head(store: Store, info: ObjectInfo) -> tuple[str, str]:
    """Return the whole lines of the head of a table, and its encoding."""
    if info.path.lower().endswith(_COMPRESSED):
        with open_stream(store, info.path, info.size) as stream:
            data = stream.read(HEAD_BYTES)
    else:
        data = store.read(info.path, 0, min(HEAD_BYTES, info.size)) if info.size else b""
    bom, encoding = next((form for form in _BOMS if data.startswith(form[0])), (b"", "utf-8"))
    text = data[len(bom) :].decode(encoding, "ignore" if len(data) == HEAD_BYTES else "strict")
    cut = text.rfind("\n") + 1
    return (text[:cut] if len(data) == HEAD_BYTES and cut else text), encoding


def _is_json_lines(lines: list[str]) -> bool:
    try:
        return isinstance(next(json_rows(lines)), dict) and len(lines) > 1
    except (ValueError, StopIteration):
        return False


def json_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines; blank lines are no rows. Raises ValueError that names a line which is not an object."""
    for number, line in enumerate(lines):
        if not line.strip():  # a blank line, as at the end of some files, is not a row
            continue
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError(f"line {number + 1} is {shorten(line)}; expected a JSON object")
        yield value


def _is_row(line: str) -> bool:
    """Return whether a line of a list is neither blank nor a comment."""
    return bool(line.strip()) and not line.startswith("#")


def _list_form(lines: list[str]) -> tuple[str, tuple[str, ...]] | None:
    """Return the kind and the columns of a list of paths, with a label behind each or without; None if it is a table with a delimiter."""
    some = [line.rstrip("\r\n") for line in lines[:1000] if _is_row(line)]
    if not some:
        return None
    pairs = [_PATH_AND_LABEL.fullmatch(line) for line in some]
    if all(pair and looks_like_image(pair[1]) and not looks_like_image(pair[2]) for pair in pairs) and "\t" not in some[0]:
        return "words", ("path", "label")
    if all(looks_like_image(line) for line in some):
        return "lines", ("path",)
    return None


def _distinct(names: list[str]) -> tuple[str, ...]:
    """Return the names of columns; a repeated one gets its number among its like."""
    return tuple(name if names.index(name) == place else f"{name}.{names[: place + 1].count(name)}" for place, name in enumerate(names))


def _delimiter(line: str) -> str:
    counts = {delimiter: re.sub(r'"[^"]*"', "", line).count(delimiter) for delimiter in _DELIMITERS}
    return "," if counts[","] else max(_DELIMITERS, key=lambda delimiter: (counts[delimiter], delimiter == ","))


def _reader(lines: Iterable[str], delimiter: str, quoted: bool) -> Any:
    return csv.reader(lines, delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


def _head_rows(lines: list[str], delimiter: str, *, quoted: bool) -> list[list[str]]:
    """Return the rows of the head; the last may be cut within a quoted cell."""
    reader, rows = _reader(lines, delimiter, quoted), []
    try:
        for row in islice(reader, 1000):
            rows.append(row)
    except csv.Error as error:
        if reader.line_num < len(lines):
            raise csv.Error(f"line {reader.line_num}: {error}") from None
    return rows


def _usual(rows: list[list[str]]) -> tuple[str | None, str | None]:
    """Return the columns of image and label in a table without a header: of two columns the other one, unless it holds sentences."""
    count = len(rows[0])
    whole = [row for row in rows if len(row) == count]
    images = [place for place in range(count) if sum(looks_like_image(row[place]) for row in whole) * 2 > len(whole)]
    image = images[0] if images else next(place for place, cell in enumerate(rows[0]) if looks_like_image(cell))
    label = None
    if count == 2 and sum(" " in row[1 - image].strip() for row in whole) * 2 < len(whole):
        label = str(2 - image)
    return str(image + 1), label


def _fitted(cells: list[str], count: int, line: int) -> list[str]:
    if len(cells) < count:
        return [*cells, *[""] * (count - len(cells))]
    if any(cells[count:]):
        raise ValueError(
            f"line {line}: it has {len(cells)} cells; expected {count}, as in the first row. Quote a cell that holds a delimiter"
        )
    return cells[:count]
