"""Tables by rules 1 and 2: Parquet, CSV and JSONL as plans of format 1.0 read them. Nothing here may change: such plans are finished."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import (
    BadInput,
    Reason,
    SourceError,
    Stage,
    shorten,
)
from tokenshards.pipeline.records import FailedRecord, ImageRecord, PlanRow, SourceRecord
from tokenshards.pipeline.sources.base import check_unchanged, read_file_row, readable_text
from tokenshards.pipeline.sources.fetch import MAX_BYTES
from tokenshards.pipeline.sources.hosts.uris import is_outside, names_local_file, resolve_uri
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType, as_label, as_meta, infer_label_type, infer_meta_type, valid_utf8
from tokenshards.pipeline.sources.summary import SourceSummary
from tokenshards.pipeline.sources.tables.earlier_columns import LABEL_NAMES, Columns, choose_columns, kind_of_type, kind_of_values
from tokenshards.pipeline.sources.tables.files import (
    PEEKED_ROWS,
    READ_ERRORS,
    failed_rest,
    id_text,
    ids_of,
    is_parquet,
    open_parquet,
    parquet_rows,
    parsing,
    slice_values,
    text_rows,
)
from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = ["TablesBefore", "read_rows_before"]

SLICE_ROWS = 1000
LARGE_ROW_GROUP = 8 * SLICE_ROWS


class TablesBefore:
    """Tables of one or more files. Image bytes become slices of Parquet row groups; URIs become file rows, like loose files.

    The first file decides the types of label and meta: by its Parquet schema, or by the first 4,096 rows of a CSV file (where unpadded
    digits are an integer) or a JSONL file. A later value that does not fit stops planning with SourceError, which names the row: it is
    better to repair a table that contradicts itself than to read half of it.
    """

    kind = "table"
    ordered = False

    def __init__(self, store: Store, config: SourceConfig, files: Sequence[ObjectInfo]) -> None:
        self.store = store
        self.config = config
        self.files = files
        self.summary = SourceSummary(noun="table")
        self._outside = 0
        """Number of rows that name local files outside the table's folder."""

    @property
    def root(self) -> str:
        """The place that row paths are relative to: an absolute path or a URL."""
        return self.store.root if self.store.is_local else self.store.url

    def list_rows(self) -> Iterator[PlanRow]:
        """Yield slices of at most 1,000 rows (image bytes) or a row per image (URIs); fills `summary`.

        Raises SourceError if a table cannot be read, lacks a column, contradicts the first table, or repeats an id of `id_column`.
        """
        self.summary = summary = self.summary.restarted()
        summary.rows = 0
        self._outside = 0
        id_hashes: list[npt.NDArray[np.uint64]] = []
        first: Columns | None = None
        for info in self.files:
            where = self.store.place(info.path)
            summary.take(readable_text(info.path), info.size)
            with parsing(where):
                if is_parquet(info.path):
                    table = open_parquet(self.store, info.path, info.size)
                    kinds = {column.name: kind_of_type(column.type) for column in table.schema_arrow}
                    columns = choose_columns(kinds, self.config, where)
                    rows = parquet_rows(table, columns)
                else:
                    rows = text_rows(self.store, info)
                    head = list(islice(rows, PEEKED_ROWS))
                    kinds, columns = self._text_columns(head, info.path, where)
                    rows = chain(head, rows)
                self._check_types(first, columns, kinds, where)
                first = first or columns
                if columns.holds == "bytes":
                    yield from self._slices(info, table.metadata)
                    if columns.id is not None:
                        hashes = (_hash64(value) for value in ids_of(table, columns.id, where))
                        id_hashes.append(np.fromiter(hashes, np.uint64))
                else:
                    yield from self._uri_rows(info.path, columns, rows, where)
        if id_hashes:
            self._refuse_repeated_ids(np.concatenate(id_hashes))
        if self._outside:
            summary.notes.append(self._outside_note())
        if self.config.no_labels:
            summary.notes.append("no labels, as --no-labels asks")
        elif first is not None and first.label is not None:
            summary.notes.append(f"labels: column {first.label}, {'whole numbers' if summary.label_type == 'int64' else 'text'}")
        else:
            summary.notes.append(f"no labels (no integer or text column named {', '.join(LABEL_NAMES)}; name one with --label)")

    def read(self, row: PlanRow) -> Iterator[SourceRecord]:
        """Yield a record for each image of one planned row."""
        if row.kind == "file":
            yield read_file_row(self.store, row, self.config)
        else:
            yield from read_rows_before(self.store, row, self.config, self.summary.label_type, self.summary.meta_types)

    def _text_columns(self, head: list[dict[str, Any]], path: str, where: str) -> tuple[dict[str, str], Columns]:
        values = {name: [row.get(name) for row in head] for name in dict.fromkeys(chain.from_iterable(head))}
        if ".csv" not in path.lower():
            kinds = {name: kind_of_values(column) for name, column in values.items()}
            return kinds, choose_columns(kinds, self.config, where)
        kinds = dict.fromkeys(values, "string")
        columns = choose_columns(kinds, self.config, where)
        kinds |= {name: infer_meta_type(values[name]) for name in columns.meta}
        if columns.label is not None:
            kinds[columns.label] = infer_label_type(values[columns.label]) or "string"
        return kinds, columns

    def _check_types(self, first: Columns | None, columns: Columns, kinds: dict[str, Any], where: str) -> None:
        label_type: LabelType | None = None if columns.label is None else kinds[columns.label]
        meta_types: dict[str, MetaType] = {name: kinds[name] for name in columns.meta}
        if first is None:
            self.summary.label_type, self.summary.meta_types = label_type, meta_types
            return
        seen, expected = (columns.holds, label_type, meta_types), (first.holds, self.summary.label_type, self.summary.meta_types)
        if seen != expected and (is_parquet(where) or columns.holds != first.holds):
            names = "(images, type of label, types of meta)"
            raise SourceError(
                f"{where}: {names} are {seen}; expected {expected}, as in the first table. Convert it, or tokenize it separately"
            )

    def _slices(self, info: ObjectInfo, metadata: Any) -> Iterator[PlanRow]:
        name = readable_text(info.path)
        stop = 0
        for group in range(metadata.num_row_groups):
            first, stop = stop, stop + metadata.row_group(group).num_rows
            if stop - first > LARGE_ROW_GROUP and not self.summary.notes:
                self.summary.notes.append(
                    f"row groups of {stop - first} rows are slow to read in slices; row groups of up to 1,000 rows are read once"
                )
            for start in range(first, stop, SLICE_ROWS):
                end = min(start + SLICE_ROWS, stop)
                self.summary.rows += end - start
                yield PlanRow(
                    kind="rows",
                    sample_id=f"{name}#{group}:{start}-{end}",
                    path=info.path,
                    size=info.size,
                    version=info.version,
                    inputs=end - start,
                    row_group=group,
                    row_start=start,
                    row_stop=end,
                )

    def _uri_rows(self, path: str, columns: Columns, rows: Iterable[dict[str, Any]], where: str) -> Iterator[PlanRow]:
        summary, name = self.summary, readable_text(path)
        for number, row in enumerate(rows):
            try:
                label = None if columns.label is None else as_label(row.get(columns.label), summary.label_type)
                meta = {key: as_meta(key, row.get(key), kind) for key, kind in summary.meta_types.items()}
                uri = row.get(columns.image)
                if uri is not None and not isinstance(uri, str):
                    raise BadInput(Reason.BAD_URI, f"{columns.image} is {shorten(uri)}; expected text", Stage.FETCH)
            except BadInput as error:
                raise SourceError(f"{where}: row {number}: {error.detail}; correct the row, or convert the column to text") from None
            sample_id = f"{name}#{number}" if columns.id is None else id_text(row.get(columns.id), columns.id, number, where)
            summary.rows += 1
            summary.take_label(label)
            resolved = resolve_uri(self.store, path, valid_utf8(uri or ""))
            if names_local_file(resolved):
                self._outside += not self.store.is_local or is_outside(self.store, resolved, links=False)
            yield PlanRow(kind="file", sample_id=sample_id, path=resolved, size=-1, version="", inputs=1, label=label, meta=meta)

    def _outside_note(self) -> str:
        rows = "1 row names" if self._outside == 1 else f"{self._outside:,} rows name"
        if self.store.is_local:
            return f"{rows} files outside {self.store.root}: if one fails, the quarantine does not keep its bytes"
        return f"{rows} local files, which a table in a store may not do: they will be quarantined as {Reason.BAD_URI}"

    def _refuse_repeated_ids(self, hashes: npt.NDArray[np.uint64]) -> None:
        hashes.sort()
        suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        if not suspects:
            return
        counts: Counter[str] = Counter()
        for info in self.files:
            where = self.store.place(info.path)
            with parsing(where):
                table = open_parquet(self.store, info.path, info.size)
                counts.update(value for value in ids_of(table, str(self.config.id_column), where) if _hash64(value) in suspects)
        repeated = [f"{value!r} ({count} rows)" for value, count in counts.most_common() if count > 1]
        if repeated:
            examples = ", ".join(repeated[:3])
            raise SourceError(
                f"--id-column {self.config.id_column}: {len(repeated)} values are not unique, such as {examples}; "
                "name a column of unique ids, or leave the option out to number the rows"
            )


def read_rows_before(
    store: Store, row: PlanRow, config: SourceConfig, label_type: LabelType | None, meta_types: dict[str, MetaType]
) -> Iterator[SourceRecord]:
    """Yield a record for each row of a slice of a Parquet row group; reads only the needed columns.

    `row_start` and `row_stop` count from the first row of the file, as the ids `path#row` of tables without an id column do. If the
    file is missing, changed or damaged, every row not yet read fails under the id `path#row`. Raises only TransientStorageError.
    """
    uri = store.place(row.path)
    name = row.sample_id.rpartition("#")[0]
    number = row.row_start
    try:
        check_unchanged(store, row)
        table = open_parquet(store, row.path, row.size)
        kinds = {column.name: kind_of_type(column.type) for column in table.schema_arrow}
        columns = choose_columns(kinds, config, uri)
        for values in slice_values(table, columns, row):
            row_id = f"{name}#{number}"
            number += 1
            sample_id = row_id if columns.id is None else str(values[columns.id])
            if row.only is None or row_id in row.only:
                where = f"{uri}#{number - 1}"
                yield _record(values, columns, sample_id, where, label_type, meta_types)
        if number < row.row_stop:
            raise EOFError(f"the table ends before row {number}")
    except READ_ERRORS as error:
        yield from failed_rest(error, row, number, uri, config)


def _record(
    values: dict[str, Any], columns: Columns, sample_id: str, uri: str, label_type: LabelType | None, meta_types: dict[str, MetaType]
) -> ImageRecord | FailedRecord:
    cell = values[columns.image]
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    try:
        if data is None:
            raise BadInput(Reason.NO_IMAGE, f"{columns.image} is null; expected the bytes of an image", Stage.FETCH)
        if len(data) > MAX_BYTES:
            raise BadInput(Reason.TOO_LARGE, f"{len(data)} bytes; expected at most {MAX_BYTES}", Stage.FETCH)
        label = None if columns.label is None else as_label(values[columns.label], label_type)
        meta = {name: as_meta(name, values[name], kind) for name, kind in meta_types.items()}
    except BadInput as error:
        return FailedRecord(sample_id=sample_id, error=error, data=data, uri=uri)
    return ImageRecord(sample_id=sample_id, data=data, label=label, meta=meta, uri=uri)


def _hash64(value: str) -> int:
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little")
