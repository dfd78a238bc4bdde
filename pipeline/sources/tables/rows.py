"""The rows of planned slices of tables, for workers: slices of columns by row groups, and of text that holds images in base64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import (
    BadInput,
    Reason,
    SourceError,
    Stage,
    shorten,
)
from tokenshards.pipeline.records import AbsentRecord, FailedRecord, ImageRecord, Label, LeftOutRecord, PlanRow, SourceRecord
from tokenshards.pipeline.sources.base import bad_mask, check_unchanged, readable_text
from tokenshards.pipeline.sources.fetch import MAX_BYTES, fetch_file
from tokenshards.pipeline.sources.hosts.uris import is_outside
from tokenshards.pipeline.sources.labels.cell_values import fitting_meta, plain_label, whole_number
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType, valid_utf8
from tokenshards.pipeline.sources.splits import ALL_SPLITS, asked_split, known_split, split_of_file
from tokenshards.pipeline.sources.tables.binary import class_names, is_binary, open_binary
from tokenshards.pipeline.sources.tables.columns import Columns, choose_columns, kind_of_type
from tokenshards.pipeline.sources.tables.files import READ_ERRORS, failed_rest, id_text
from tokenshards.pipeline.sources.tables.paths import Places, decoded_cell, partition_of
from tokenshards.pipeline.sources.tables.text import open_text
from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = ["FAILED_STATUS", "OFFSET", "OTHER_SPLIT", "Row", "class_of", "column_names", "is_of_split", "read_table_rows", "wanted_split"]

READ_ROWS = 32
OFFSET = "@offset"
"""Meta value of a planned slice of text: the byte at which its first row begins."""
FAILED_STATUS = "failed"
"""How the words begin by which img2dataset marks rows without an image. A status such as `pending` is no such mark."""
OTHER_SPLIT = "of another split"


class Row:
    """The chosen cells of one row by their column."""

    __slots__ = ("cells",)

    def __init__(self, cells: dict[str, Any]) -> None:
        self.cells = cells

    def says_absent(self, columns: Columns) -> bool:
        """Return whether the table itself says that there is no image: the cell is null, or the status is a failure."""
        if columns.status is not None and str(self.cells[columns.status]).startswith(FAILED_STATUS):
            return True
        if columns.image is None:
            return False
        cell = self.cells[columns.image]
        return cell is None or cell == "" or (isinstance(cell, dict) and cell.get("bytes") is None and not cell.get("path"))


def wanted_split(config: SourceConfig, path: str) -> str | None:
    """Return the split that rows of a table must have: the asked one, unless the name of the file tells its split; None for every row."""
    asked = asked_split(config.split)
    if asked in (None, ALL_SPLITS) or split_of_file(readable_text(path), asked) is not None:
        return None
    return asked


def column_names(schema: Any, columns: Columns, partition: dict[str, str | None]) -> list[str]:
    """Return the names to read: of a struct of an image only its bytes and path, because other fields may be as large; no partitions."""
    names: list[str] = []
    for name in columns.names:
        if name == columns.id and name not in schema.names:  # the path in the struct
            continue
        if name in partition and name not in schema.names:
            continue
        fields = []
        if (name == columns.image and columns.holds == "bytes") or name == columns.mask:
            kind = schema.field(name).type
            fields = [
                f"{name}.{part}" for part in ("bytes", "path") if hasattr(kind, "get_field_index") and kind.get_field_index(part) >= 0
            ]
        names += fields or [name]
    return names


def read_table_rows(
    store: Store, row: PlanRow, config: SourceConfig, label_type: LabelType | None, meta_types: dict[str, MetaType]
) -> Iterator[SourceRecord]:
    """Yield a record for each row of a planned slice of a table; reads only the needed columns.

    `row_start` and `row_stop` count from the first row of the file, as the ids `path#row` of tables without an id column do. If the
    file is missing, changed or damaged, every row not yet read fails under the id `path#row`. Raises only TransientStorageError, and
    SourceError where a good image has a label or meta value that does not fit the plan.
    """
    uri, name, number = store.place(row.path), row.sample_id.rpartition("#")[0], row.row_start
    unfit: SourceError | None = None
    try:
        check_unchanged(store, row)
        reader = _Reader(store, row, config, label_type, meta_types)
        for cells in reader.cells():
            row_id = f"{name}#{number}"
            number += 1
            if row.only is None or row_id in row.only:
                try:
                    record = reader.record(Row(cells), row_id, f"{uri}#{number - 1}", number - 1)
                except SourceError as error:
                    unfit = error
                    raise
                yield record
        if number < row.row_stop:
            raise EOFError(f"the table ends before row {number}")
    except READ_ERRORS as error:
        if error is unfit:
            raise
        yield from failed_rest(error, row, number, uri, config)


class _Reader:
    """The rows of one slice, with the rules of the plan."""

    def __init__(
        self, store: Store, row: PlanRow, config: SourceConfig, label_type: LabelType | None, meta_types: dict[str, MetaType]
    ) -> None:
        self._store, self._row, self._config = store, row, config
        self._label_type, self._meta_types = label_type, meta_types
        self._info = ObjectInfo(path=row.path, size=row.size, version=row.version, modified_seconds=0)
        self._partition = partition_of(readable_text(row.path))
        self._places = Places(store, row.path, config)
        self._wanted = wanted_split(config, row.path)
        self._classes: tuple[str, ...] = ()
        usual: tuple[str | None, str | None] = (None, None)
        if is_binary(row.path):
            self._table: Any = open_binary(store, self._info)
            kinds = {field.name: kind_of_type(field.type) for field in self._table.schema}
        else:  # planning has written the columns of image and label into the config
            self._table = open_text(store, self._info)
            usual = self._table.usual
            head: dict[str, Any] = next(self._table.rows(), {}) if self._table.is_json else {}
            named = (config.image_column, config.label, config.id_column, config.mask_rules.mask_column, *config.meta)
            kinds = dict.fromkeys((*self._table.names, *head, *(name for name in named if name and head)), "string")
        for column in self._partition:
            kinds.setdefault(column, "string")
        self.columns = choose_columns(kinds, config, store.place(row.path), encoded=True, usual=usual)
        if is_binary(row.path) and self.columns.label is not None and label_type == "string":
            self._classes = class_names(self._table.schema, self.columns.label)

    def cells(self) -> Iterator[dict[str, Any]]:
        """Yield the chosen cells of the rows of the slice."""
        row, table, columns = self._row, self._table, self.columns
        constant = {name: value for name, value in self._partition.items() if name in columns.names}
        if is_binary(row.path):
            constant = {name: value for name, value in constant.items() if name not in table.schema.names}
            for batch in table.rows_between(column_names(table.schema, columns, constant), row.row_start, row.row_stop, READ_ROWS):
                yield from ({**cells, **constant} for cells in batch.to_pylist()) if constant else batch.to_pylist()
            return
        names = tuple(name for name in columns.names if name not in constant or name in table.names)
        pick = table.picker(names)
        placed = table.seekable and OFFSET in row.meta and row.only is None  # before a retry the table may have been rewritten
        rows = table.rows(placed=placed, start=row.meta[OFFSET]) if placed else islice(table.rows(), row.row_start, None)
        for raw in islice(rows, row.row_stop - row.row_start):
            picked = pick(raw) if table.is_json else [cell or None for cell in pick(raw)]  # an empty cell of CSV is null
            cells = dict(zip(names, picked, strict=True))
            yield {**cells, **{name: value for name, value in constant.items() if name not in cells}}

    def record(self, row: Row, row_id: str, uri: str, number: int) -> SourceRecord:
        """Return the record of a row. Raises SourceError if a value does not fit the plan."""
        columns, cells = self.columns, row.cells
        if self._wanted is not None and columns.split is not None and not is_of_split(cells[columns.split], self._wanted):
            return LeftOutRecord(kind=OTHER_SPLIT, count=1, example=row_id)
        sample_id = row_id
        if columns.id is not None:
            struct = cells[columns.image] if columns.image is not None and columns.id not in cells else None
            value = struct.get("path") if isinstance(struct, dict) else cells.get(columns.id)
            if columns.id in cells or value:
                sample_id = id_text(value, columns.id, number, uri)
        if row.says_absent(columns):
            return AbsentRecord(sample_id=sample_id, uri=uri)
        label = self._label(cells, uri)
        meta = self._meta(cells, uri)
        cell = cells[str(columns.image)]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        keep = True
        try:
            if data is None or isinstance(data, str):
                data, keep = self._from_text(cell["path"] if data is None else data, sample_id)
            _refuse_large(data)
        except BadInput as error:
            return FailedRecord(sample_id=sample_id, error=error, label=label, uri=uri)
        try:
            mask = self._mask(cells, sample_id)
        except BadInput as error:
            return FailedRecord(sample_id=sample_id, error=bad_mask(error), data=data if keep else None, label=label, uri=uri)
        return ImageRecord(sample_id=sample_id, data=data, label=label, meta=meta, uri=uri, keep_bytes=keep, mask=mask)

    def _mask(self, cells: dict[str, Any], sample_id: str) -> bytes | None:
        """Return the bytes of the mask of a row, None where its cell is empty."""
        cell = None if self.columns.mask is None else cells[self.columns.mask]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        text = cell.get("path") if isinstance(cell, dict) and data is None else data
        if text is None or text == "" or text == b"":
            return None
        found: bytes = self._from_text(text, sample_id)[0] if isinstance(text, str) else text
        _refuse_large(found)
        return found

    def _from_text(self, text: str, sample_id: str) -> tuple[bytes, bool]:
        """Return the bytes that a text holds or names, and whether the quarantine may keep them."""
        data = decoded_cell(text)
        if data is not None:
            return data, True
        place = self._places.resolve(valid_utf8(text))
        file = PlanRow(kind="file", sample_id=sample_id, path=place, size=-1, version="", inputs=1)
        return fetch_file(self._store, file, self._config), not is_outside(self._store, place)

    def _label(self, cells: dict[str, Any], uri: str) -> Label:
        column = self.columns.label
        if column is None:
            return None
        label = plain_label(cells[column], first=self._config.label_first)
        if self._classes and isinstance(label, int):
            return class_of(label, self._classes)
        if label is None or self._label_type == "string":
            return None if label is None else str(label)
        if self._label_type == "int64" and not isinstance(label, int):
            number = whole_number(label)
            label = label if number is None else number
        if self._label_type is None or not isinstance(label, int):
            raise SourceError(
                f"{uri}: the label is {shorten(label)}; expected {self._label_type or 'none'}, as planned. Nothing of this shard is "
                "written. Plan again, into another output, with --as-text"
            )
        return label

    def _meta(self, cells: dict[str, Any], uri: str) -> dict[str, Any]:
        found = {}
        for name, kind in self._meta_types.items():
            value, needed = fitting_meta(name, cells[name], kind)
            if needed != kind:
                raise SourceError(
                    f"{uri}: meta.{name} is {shorten(value)}; expected {kind}, as planned. Nothing of this shard is written. Plan again, "
                    "into another output, with --as-text"
                )
            found[name] = value
        return found


def _refuse_large(data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise BadInput(Reason.TOO_LARGE, f"{len(data)} bytes; expected at most {MAX_BYTES}", Stage.FETCH)


def is_of_split(cell: Any, wanted: str) -> bool:
    """Return whether the value of a `split` column names the wanted split."""
    text = "" if cell is None else str(cell).strip()
    return text.casefold() == wanted or known_split(text) == wanted


def class_of(number: int, names: tuple[str, ...]) -> str | None:
    """Return the name of a class of a ClassLabel column; -1 is its mark for a missing label."""
    if number == -1:
        return None
    return names[number] if 0 <= number < len(names) else str(number)
