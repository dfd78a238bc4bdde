"""Read a table of labels whole: which column names the images, which holds the label."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import MissingObjectError, SourceError, TransientStorageError, shorten
from tokenshards.pipeline.records import Label
from tokenshards.pipeline.sources.label_lines import KEY_NAMES, word_lines
from tokenshards.pipeline.sources.labels.cell_values import ListLabelError, plain_label, whole_floats, whole_number
from tokenshards.pipeline.sources.labels.values import LabelType, infer_label_type
from tokenshards.pipeline.sources.source_store import SourceStore
from tokenshards.pipeline.sources.summary import Doubt
from tokenshards.pipeline.sources.tables.binary import class_names, is_binary, open_binary
from tokenshards.pipeline.sources.tables.columns import LABEL_NAMES
from tokenshards.pipeline.sources.tables.files import parsing
from tokenshards.pipeline.sources.tables.rows import class_of
from tokenshards.pipeline.sources.tables.text import TextTable, looks_like_image, open_text
from tokenshards.pipeline.storage.store import ObjectInfo, Store, is_absolute

__all__ = ["TABLES", "LabelRows", "find_tables", "likely_tables", "read_labels"]

MAX_ROWS = 20_000_000
"""Most rows of a table of labels: they are held in memory."""
PEEKED = 1000
TABLES = (".parquet", ".arrow", ".feather", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")


@dataclass(slots=True)
class LabelRows:
    """All rows of a table of labels."""

    key_column: str
    label_column: str
    places: dict[str, int] = field(default_factory=dict)
    """Row by the key as it is compared."""
    labels: list[Label] = field(default_factory=list)
    label_type: LabelType | None = None
    class_order: tuple[str, ...] = ()
    in_order: bool = False
    """Whether the table is a list of labels without keys."""
    notes: list[str] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)


def find_tables(store: Store, table: str) -> tuple[Store, list[ObjectInfo]]:
    """Return the files of `--label-from file:TABLE` and their store: a file, a pattern, or all tables of a folder."""
    place, path = store, table
    if is_absolute(table) or posixpath.normpath(table).startswith("../"):
        whole = table if is_absolute(table) else posixpath.normpath(store.join(table))
        folder, _, path = whole.rpartition("/")
        place = SourceStore(folder or "/", storage_options=store.storage_options, retry=store.retry)
    if "*" in path:
        infos = [info for name in sorted(place.glob(path)) if (info := place.info(name)) is not None]
    else:
        found = place.info(path)
        infos = [found] if found is not None and found.regular else []
        if not infos:
            listed = [info for info in place.list(path) if info.path.lower().endswith(TABLES)]
            first = next((ending for ending in TABLES if any(info.path.lower().endswith(ending) for info in listed)), "")
            infos = sorted((info for info in listed if first and info.path.lower().endswith(first)), key=lambda info: info.path)
    if not infos:
        here = f"; it lies in the present folder, so give {os.path.abspath(table)}" if store.is_local and os.path.exists(table) else ""
        raise SourceError(f"--label-from {shorten(f'file:{table}')}: there is no such table below {store.url}, where its path begins{here}")
    return place, infos


def likely_tables(store: Store, paths: Sequence[str], config: SourceConfig) -> list[str]:
    """Return those of some tables beside images whose head shows which column names the images and which holds the label.

    Parquet files are returned unread: their names alone tell which belong together.
    """
    found = []
    for path in paths:
        info = store.info(path)
        if info is None or path.endswith(".parquet"):
            found += [] if info is None else [path]
            continue
        try:
            with parsing(store.place(path)):
                _Table(store, info, config)
        except (SourceError, MissingObjectError, TransientStorageError):
            continue  # it is no table of labels, or it cannot be read: then it is not proposed
        found.append(path)
    return found


def read_labels(store: Store, infos: Sequence[ObjectInfo], config: SourceConfig) -> LabelRows:
    """Read tables of labels, all with the same columns. Raises SourceError if key or label cannot be told, or two rows contradict."""
    rows: LabelRows | None = None
    cells: list[Any] = []
    digits = True
    for info in infos:
        where = store.place(info.path)
        with parsing(where):
            table = _Table(store, info, config)
            if rows is None:
                rows = LabelRows(table.key, table.label, in_order=not table.key, notes=table.notes, class_order=table.classes)
            elif (rows.key_column, rows.label_column, rows.class_order) != (table.key, table.label, table.classes):
                raise SourceError(f"{where}: its columns are not those of {store.place(infos[0].path)}; expected the same in all")
            digits = digits and table.digits
            _take(table, rows, cells, where, config)
    if rows is None:
        raise SourceError("a table of labels has no files")
    _give_types(rows, cells, digits, config)
    return rows


def _take(table: _Table, rows: LabelRows, cells: list[Any], where: str, config: SourceConfig) -> None:
    for number, (key, cell) in enumerate(table.pairs()):
        if len(cells) >= MAX_ROWS:
            raise SourceError(
                f"{where}: the table has more than {MAX_ROWS:,} rows; expected fewer, or a table of images with a label column"
            )
        if isinstance(cell, str) and not cell:
            cell = None
        if rows.in_order:
            cells.append(cell)
            continue
        name = _compared(key)
        if not name:
            continue
        seen = rows.places.get(name)
        if seen is None:
            rows.places[name] = len(cells)
            cells.append(cell)
        elif cells[seen] != cell and not config.label_first:
            raise SourceError(
                f"{where}: row {number}: {shorten(name)} has the labels {shorten(cells[seen])} and {shorten(cell)}; expected one row for "
                "each image, or --label-first to take the first"
            )


def _give_types(rows: LabelRows, cells: list[Any], digits: bool, config: SourceConfig) -> None:
    if digits and not config.as_text:
        if whole_floats(cells):
            cells[:] = [None if cell is None else whole_number(cell) for cell in cells]
        elif infer_label_type(cells) == "int64":
            cells[:] = [None if cell is None else int(cell) for cell in cells]
    try:
        labels = [plain_label(cell, first=config.label_first) for cell in cells]
    except ListLabelError as error:
        raise SourceError(
            f"column {rows.label_column} holds lists ({error}), and an image has one label: --label-first takes the first"
        ) from None
    if rows.class_order:
        labels = [class_of(label, rows.class_order) if isinstance(label, int) else label for label in labels]
    text = config.as_text or any(isinstance(label, str) for label in labels)
    rows.labels = [None if label is None else str(label) for label in labels] if text else labels
    present = any(label is not None for label in labels)
    rows.label_type = None if not present else "string" if text else "int64"


def _compared(key: object) -> str:
    if isinstance(key, float) and key.is_integer():
        key = int(key)
    text = "" if key is None else str(key).strip().replace("\\", "/")
    while text.startswith("./"):
        text = text[2:]
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class _Table:
    """One file with the columns of key and label."""

    def __init__(self, store: Store, info: ObjectInfo, config: SourceConfig) -> None:
        self._where = store.place(info.path)
        self.notes: list[str] = []
        self.classes: tuple[str, ...] = ()
        self.digits = not is_binary(info.path)
        self._extra: list[Any] = []
        if is_binary(info.path):
            self._table: Any = open_binary(store, info)
            names = tuple(self._table.schema.names)
            self._head: list[Any] = next((batch.to_pylist() for batch in self._table.all_batches(names, 20)), [])
        else:
            self._table = open_text(store, info)
            found = word_lines(self._table.lines(), config.label) if self._is_list(config) else None
            if found is not None:
                self._table.header, self._table.names, self._table.usual = False, found.names, (found.names[0], found.label)
                self.notes += [f"{self._where}: {found.note}"] if found.note else []
            self._rows = self._table.rows() if found is None else iter(found.rows)
            self._head = list(islice(self._rows, PEEKED))
            names = self._table.names or tuple(dict.fromkeys(chain.from_iterable(self._head)))
            self.digits = not self._table.is_json
        self.key, self.label = self._columns(names, config)
        if is_binary(info.path):
            self.classes = class_names(self._table.schema, self.label)

    def _is_list(self, config: SourceConfig) -> bool:
        """Return whether lines of words may hold names and labels: a `.txt` without a delimiter, whose key no option names."""
        return self._table.info.path.lower().endswith(".txt") and len(self._table.names) == 1 and config.key_column is None

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Yield key and label of each row."""
        names = tuple(name for name in (self.key, self.label) if name)
        if isinstance(self._table, TextTable):
            pick = self._table.picker(names)
            for row in chain(self._extra, self._head, self._rows):
                cells = pick(row)
                yield (None, cells[0]) if len(names) == 1 else cells
            return
        for batch in self._table.all_batches(names, 1 << 14):
            columns = [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in names]
            yield from zip(*columns, strict=True) if len(columns) == 2 else ((None, cell) for cell in columns[0])

    def _columns(self, names: tuple[str, ...], config: SourceConfig) -> tuple[str, str]:
        """Return the columns of key and label; the key is "" in a list of labels."""
        for option, name in (("--key-column", config.key_column), ("--label", config.label)):
            if name is not None and name not in names:
                raise SourceError(f"{self._where}: {option} names {name!r}; the columns are {', '.join(names)}")
        if len(names) == 1 and config.key_column is None:
            if self.digits and names[0].lower() not in (*LABEL_NAMES, config.label) and self._table.header:
                self._extra = [[names[0]]]  # the first line is a label too
            return "", names[0]
        usual = self._table.usual if isinstance(self._table, TextTable) else (None, None)
        if isinstance(self._table, TextTable) and self.digits and self._table.header and not self._is_header(names, config):
            self._extra = [list(names)]
            usual = (names[0], names[1])
            self.notes.append(f"{self._where} has no header that names a label: its first line is taken as a row")
        label = config.label or usual[1] or _found(LABEL_NAMES, names)
        key = config.key_column or usual[0] or self._key(names, label)
        if label is None and key is not None:
            others = [name for name in names if name != key]
            if len(others) == 1:
                label = others[0]
            elif usual[0] is not None:
                label = names[(names.index(key) + 1) % len(names)]
                self.notes.append(f"{self._where} has no header: the label is its column {label}")
        if key is None or label is None or key == label:
            what = "names the images" if key is None or key == label else "holds the label"
            option = "--key-column" if key is None or key == label else "--label"
            raise SourceError(f"{self._where}: which column {what}? Name it with {option}; the columns are {', '.join(names)}")
        return key, label

    def _is_header(self, names: tuple[str, ...], config: SourceConfig) -> bool:
        lower = {name.lower() for name in names}
        asked = config.key_column or config.label
        return bool(asked or lower & {*KEY_NAMES, *LABEL_NAMES}) or len(names) != 2 or not self._table.info.path.endswith(".txt")

    def _key(self, names: tuple[str, ...], label: str | None) -> str | None:
        """Return the column that names the images: by its name, else by its values."""
        others = tuple(name for name in names if name != label)
        if found := _found(KEY_NAMES, others):
            return found
        if len(others) == 1:
            return others[0]
        return next((name for name in others if self._holds_images(name)), None)

    def _holds_images(self, name: str) -> bool:
        if isinstance(self._table, TextTable) and not self._table.is_json:
            place = self._table.names.index(name)
            cells = [row[place] for row in self._head[:20]]
        else:
            cells = [row.get(name) for row in self._head[:20]]
        texts = [cell for cell in cells if isinstance(cell, str)]
        return bool(texts) and all(looks_like_image(text) for text in texts)


def _found(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    by_lower_name = {name.lower(): name for name in names}
    return next((by_lower_name[name] for name in wanted if name in by_lower_name), None)
