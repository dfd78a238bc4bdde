"""A table of labels that lies beside the images, joined by name: `--label-from file:TABLE`."""

from __future__ import annotations

import posixpath
import re
import threading
import unicodedata

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError, shorten
from tokenshards.pipeline.images.decode import image_extensions
from tokenshards.pipeline.records import Label
from tokenshards.pipeline.sources.base import readable_text
from tokenshards.pipeline.sources.junk import junk_kind
from tokenshards.pipeline.sources.label_files import TABLES, LabelRows, find_tables, read_labels
from tokenshards.pipeline.sources.labels.cell_values import label_notes
from tokenshards.pipeline.sources.labels.values import LabelType
from tokenshards.pipeline.sources.splits import ALL_SPLITS, asked_split, split_at
from tokenshards.pipeline.sources.summary import Doubt, SourceSummary, extension
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["FILE_RULE", "LabelTable", "names_table", "open_once", "table_version"]

FILE_RULE = "file:"


class LabelTable:
    """Labels by the relative path of an image, for folders and for members of tars.

    A row belongs to an image if its key is the image's path, the end of that path at a folder, or one of both without the extension;
    else if the file name in the key is the image's, and no other key has that file name.
    """

    def __init__(self, rows: LabelRows, where: str, table: str) -> None:
        self._rows, self._where, self._table = rows, where, table
        self._by_name: dict[str, int] | None = None
        self._used = bytearray(len(rows.labels))
        self._images = 0
        self._without: list[str] = []
        self._missing = 0
        self.label_type: LabelType | None = rows.label_type
        self.class_order = rows.class_order
        self.rule = f"column {rows.label_column} of {table}, joined by its column {rows.key_column}"
        if rows.in_order:
            self.rule = f"the lines of {table}, in the order of the sorted paths of the images"

    @staticmethod
    def open(store: Store, table: str, config: SourceConfig) -> LabelTable:
        """Read a table; raises SourceError if it cannot be joined. `table` begins below the source, or is an absolute path or a URL."""
        place, infos = find_tables(store, table)
        rows = read_labels(place, infos, config)
        where = place.place(infos[0].path)
        if rows.in_order:
            _join_in_order(rows, store, where, config)
        return LabelTable(rows, where, table)

    def label_of(self, path: str, key: str = "") -> Label:
        """Return the label of an image, None if the table has none; `key` is another name of it, such as the key of a tar's sample."""
        self._images += 1
        row = self._row_of(path)
        if row < 0 and key:
            row = self._row_of(key)
        if row < 0:
            self._missing += 1
            if len(self._without) < 3:
                self._without.append(path)
            return None
        self._used[row] = min(2, self._used[row] + 1)
        return self._rows.labels[row]

    def finish(self, summary: SourceSummary) -> None:
        """Say how many images have no row, and how many rows no image. Raises SourceError if the two have nothing in common."""
        rows, images = self._rows, self._images
        if images and self._missing == images:
            key = next(iter(rows.places), "")
            raise SourceError(
                f"{self._where}: none of its {counted(len(rows.labels), 'row')} "
                f"belongs to an image: column {rows.key_column} holds values such as "
                f"{shorten(key)}, and images have paths such as {shorten(self._without[0])}. Name the column of the names with --key-column"
            )
        summary.class_order = rows.class_order
        summary.notes += rows.notes
        summary.doubts += rows.doubts
        summary.notes += label_notes(summary.classes, rows.label_type)
        if self._missing:
            shown = ", ".join(self._without)
            summary.notes.append(f"{counted(self._missing, 'image has', 'images have')} no row in {self._table}, such as {shown}: no label")
        unused = self._used.count(0)
        if unused:
            summary.notes.append(f"{counted(unused, 'row')} of {self._table} {'belongs' if unused == 1 else 'belong'} to no image")
        shared = self._used.count(2)
        if shared:
            summary.doubts.append(
                Doubt(
                    sentence=f"{counted(shared, 'row')} of {self._table} {'names' if shared == 1 else 'name'} several images, which lie in "
                    "different folders: each gets that label",
                    option="--key-column NAME for a column with folders, or --split NAME for one of the folders",
                )
            )

    def _row_of(self, path: str) -> int:
        places = self._rows.places
        name = path if path.isascii() else unicodedata.normalize("NFC", path)
        stem = without_extension(name)
        start = 0
        while start >= 0:
            row = places.get(name[start:], -1)
            if row < 0 and stem:
                row = places.get(stem[start:], -1)
            if row >= 0 or self._rows.in_order:
                return row
            start = name.find("/", start) + 1 or -1
        if self._by_name is None:
            self._by_name = _names_of(places)
        last = posixpath.basename(name)
        row = self._by_name.get(last, -1)
        return row if row >= 0 else self._by_name.get(without_extension(last), -1)


def without_extension(path: str) -> str:
    """Return a path without its last extension; "" if it has none."""
    stem, ending = posixpath.splitext(path)
    return stem if ending else ""


_opened: dict[tuple[object, ...], LabelTable] = {}
_opening = threading.Lock()


def names_table(rule: str | None) -> bool:
    """Return whether a value of --label-from is `file:` with a table, not with a folder of tars."""
    return rule is not None and rule.startswith(FILE_RULE) and extension(rule).startswith(TABLES)


def open_once(store: Store, config: SourceConfig) -> LabelTable | None:
    """Return the table that the rule of a plan names, opened once in a process; None if it names none.

    Raises SourceError if the table is not as it was at planning.
    """
    if not names_table(config.label_from):
        return None
    table = str(config.label_from).removeprefix(FILE_RULE)
    key = (store.url, table, config.key_column, config.label, config.label_first, config.as_text, config.label_table)
    with _opening:
        if key not in _opened:
            if config.label_table is not None and table_version(store, table) != config.label_table:
                raise SourceError(
                    f"{store.url}: the table {shorten(table)} of the labels has changed since the plan was made. Restore it, or plan again "
                    "into another output"
                )
            _opened.clear()
            _opened[key] = LabelTable.open(store, table, config)
        return _opened[key]


def table_version(store: Store, table: str) -> str:
    """Return what tells one state of the files of a table from another."""
    _, infos = find_tables(store, table)
    return " ".join(f"{info.size}:{info.version}" for info in infos)[:2000]


def _join_in_order(rows: LabelRows, store: Store, where: str, config: SourceConfig) -> None:
    """Give the labels of a list without names to the images in the order of their paths; raises SourceError if the numbers differ.

    With --split the list is of the images of that split.
    """
    asked = asked_split(config.split)
    images = image_extensions()
    names = (readable_text(info.path) for info in store.list())
    names_sorted = sorted(
        name
        for name in names
        if extension(name) in images
        and junk_kind(name) is None
        and (asked in (None, ALL_SPLITS) or split_at(posixpath.dirname(name), asked)[0] == asked)
    )
    named = {one for name in names_sorted for last in (name, posixpath.basename(name)) for one in (last, without_extension(last))}
    if 2 * sum(label in named for label in rows.labels) > len(rows.labels):
        raise SourceError(
            f"{where}: its lines name images, such as {shorten(rows.labels[0])}, and hold no label; expected a name and a label"
        )
    if not names_sorted:
        raise SourceError(
            f"{where} holds {counted(len(rows.labels), 'label')} "
            f"without the names of images, and there are no image files in {store.url} to be "
            "numbered by them. Images in tars have names, not numbers: unpack them, or give a table with a column of names"
        )
    if len(names_sorted) != len(rows.labels):
        raise SourceError(
            f"{where} holds {counted(len(rows.labels), 'label')} without the names of images; expected as many as there are images, "
            f"{len(names_sorted):,}, to take them in the order of the sorted paths, or a column with names"
        )
    by_number = sorted(names_sorted, key=_by_number)
    if by_number != names_sorted:
        place = next(place for place, name in enumerate(names_sorted) if name != by_number[place])
        rows.doubts.append(
            Doubt(
                sentence=f"{where} has no names, and the order of its labels is not sure: as text {names_sorted[place]} comes before "
                f"{by_number[place]}, as numbers after it; the order of the text is taken",
                option="a table with a column of names; --yes takes the order of the text",
                grave=True,
            )
        )
    rows.places.update((unicodedata.normalize("NFC", name), row) for row, name in enumerate(names_sorted))
    rows.notes.append(f"{where} has no names: its {len(rows.labels):,} labels are given to the images in the order of their sorted paths")


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which `2.jpg` comes before `10.jpg`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _names_of(places: dict[str, int]) -> dict[str, int]:
    """Return rows by the file name in the key, with and without extension; a name that several keys have is no one's."""
    found: dict[str, int] = {}
    for key, row in places.items():
        name = posixpath.basename(key)
        for one in {name, without_extension(name)} - {""}:
            found[one] = row if found.get(one, row) == row else -1
    return found
