"""Tables with a column of images or of their places, a label column and meta columns: Parquet, Arrow, CSV and its kin, lists, JSON.

Images in cells become slices of the plan, of at most 1,000 rows; paths and URLs become file rows, like loose files. What the columns mean
is settled here, at planning: the types of labels and meta values hold every value that the listing saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError
from tokenshards.pipeline.records import AbsentRecord, PlanRow, SourceRecord
from tokenshards.pipeline.sources.base import read_file_row, readable_text, refuse_options
from tokenshards.pipeline.sources.labels.cell_values import whole_floats
from tokenshards.pipeline.sources.labels.values import infer_label_type, infer_meta_type
from tokenshards.pipeline.sources.splits import split_of_file
from tokenshards.pipeline.sources.summary import SourceSummary
from tokenshards.pipeline.sources.tables.binary import ColumnTable, class_names, is_binary, open_binary
from tokenshards.pipeline.sources.tables.cells import cell_tuples, cells_by_column, first_cells, peeked
from tokenshards.pipeline.sources.tables.columns import SCALARS, Columns, choose_columns, kind_of_type, kind_of_values
from tokenshards.pipeline.sources.tables.encoded import encoded_slices
from tokenshards.pipeline.sources.tables.files import parsing
from tokenshards.pipeline.sources.tables.ids import refuse_repeated_ids
from tokenshards.pipeline.sources.tables.labels import SeenLabels, SeenMeta
from tokenshards.pipeline.sources.tables.paths import looks_encoded, partition_of
from tokenshards.pipeline.sources.tables.rows import OTHER_SPLIT, read_table_rows, wanted_split
from tokenshards.pipeline.sources.tables.scan import Scan, may_be_absent, paths_are_there, scan_columns
from tokenshards.pipeline.sources.tables.seen import Seen
from tokenshards.pipeline.sources.tables.text import open_text
from tokenshards.pipeline.sources.tables.uri_rows import uri_rows
from tokenshards.pipeline.storage.store import ObjectInfo, Store
from tokenshards.pipeline.thread_map import map_in_order

__all__ = ["TableSource"]

SLICE_ROWS = 1000
LARGE_ROW_GROUP = 8 * SLICE_ROWS
LOOKING_THREADS = 16
"""Tables of a store to look at together."""


@dataclass(slots=True, kw_only=True)
class _Look:
    """One table of columns, opened."""

    info: ObjectInfo
    table: ColumnTable
    kinds: dict[str, str]
    columns: Columns
    partition: dict[str, str | None]
    scan: Scan
    paths: npt.NDArray[np.int64] | int | None


class TableSource:
    """Tables of one or more files, by rules 3. Raises SourceError for options that tables cannot use."""

    kind = "table"
    ordered = False

    def __init__(self, store: Store, config: SourceConfig, files: Sequence[ObjectInfo]) -> None:
        self.store = store
        self.config = config
        self.files = files
        self.summary = SourceSummary(noun="table")
        no_members = "tables have no members; --image-column NAME takes another column"
        refuse_options(
            config,
            store.url,
            "a set of tables",
            masks="a table names its masks in a column: --mask-column NAME",
            all_files="a table names its images",
            image_member=no_members,
            key_column="it is for --label-from file:TABLE; the label of a table is a column of its own",
            **({} if config.label_from == "none" else {"label_from": "the label is a column of the table, which --label NAME names"}),
        )
        if config.tar_key != "auto":
            raise SourceError(f"{store.url} is a set of tables, and --key was given as {config.tar_key!r}: it has no tars. Leave it out")

    @property
    def root(self) -> str:
        """The place that row paths are relative to: an absolute path or a URL."""
        return self.store.root if self.store.is_local else self.store.url

    def list_rows(self) -> Iterator[PlanRow]:
        """Yield slices of at most 1,000 rows (images in cells) or a row per image (paths and URLs); fills `summary`, settles `config`.

        Raises SourceError if a table cannot be read, lacks a column, contradicts itself, or repeats an id of `id_column`.
        """
        self.summary = summary = self.summary.restarted()
        summary.rows = 0
        config = self.config
        seen = Seen(store=self.store, config=config, summary=summary, labels=SeenLabels(config), meta=SeenMeta(config))
        ids: list[npt.NDArray[np.uint64]] = []
        for info, look in self._looks():
            summary.take(readable_text(info.path), info.size)
            where = self.store.place(info.path)
            with parsing(where):
                if look is None:
                    yield from self._text(info, where, seen, ids)
                else:
                    yield from self._columns(look, where, seen)
                    if look.scan.ids is not None:
                        ids.append(look.scan.ids)
        if ids:
            refuse_repeated_ids(self.store, self.files, config, np.concatenate(ids))
        seen.finish()
        if seen.paths_are_ids() and not config.frozen and seen.first is not None:
            self.config = replace(self.config, id_column=f"{seen.first.image}.path")
        if seen.first is not None and seen.first.holds == "encoded" and not config.frozen:  # a worker does not look at the first rows again
            image, label = seen.first.image, seen.first.label
            self.config = replace(self.config, image_column=image, label=label, no_labels=label is None and config.label_from is None)
        summary.newer_inputs |= self.config.id_column != config.id_column or bool(seen.labels.names)

    def read(self, row: PlanRow) -> Iterator[SourceRecord]:
        """Yield a record for each image of one planned row."""
        if row.kind == "file":
            yield read_file_row(self.store, row, self.config)
        elif row.kind == "absent":
            yield AbsentRecord(sample_id=row.sample_id, uri=row.path)
        else:
            yield from read_table_rows(self.store, row, self.config, self.summary.label_type, self.summary.meta_types)

    def _looks(self) -> Iterator[tuple[ObjectInfo, _Look | None]]:
        """Yield the tables in order, those of columns opened; of a store several are opened together."""

        def look(info: ObjectInfo) -> tuple[ObjectInfo, _Look | None]:
            return info, self._look(info) if is_binary(info.path) else None

        if self.store.is_local or len(self.files) == 1:
            yield from map(look, self.files)
        else:
            yield from map_in_order(look, self.files, threads=LOOKING_THREADS, ahead=LOOKING_THREADS)

    def _look(self, info: ObjectInfo) -> _Look:
        config, where = self.config, self.store.place(info.path)
        with parsing(where):
            table = open_binary(self.store, info)
            kinds = {field.name: kind_of_type(field.type) for field in table.schema}
            partition = {name: value for name, value in partition_of(readable_text(info.path)).items() if name not in kinds}
            kinds |= dict.fromkeys(partition, "string")
            columns = choose_columns(kinds, config, where)
            if columns.image is not None and columns.holds == "URIs" and looks_encoded(first_cells(table, columns.image)):
                columns = replace(columns, holds="encoded")
            if columns.holds == "URIs":
                return _Look(info=info, table=table, kinds=kinds, columns=columns, partition=partition, scan=Scan(), paths=None)
            by_name = columns.split is not None and split_of_file(readable_text(info.path)) is not None
            known = replace(columns, split=None) if by_name else columns
            scan = scan_columns(table, known, config, where, wanted_split(config, info.path))
            paths = paths_are_there(table, columns) if config.id_column is None and not config.frozen else None
            return _Look(info=info, table=table, kinds=kinds, columns=columns, partition=partition, scan=scan, paths=paths)

    def _columns(self, look: _Look, where: str, seen: Seen) -> Iterator[PlanRow]:
        """Yield the rows of a table of columns."""
        columns, table, info = look.columns, look.table, look.info
        rows = sum(table.group_rows)
        kind = "null" if columns.label is None else look.kinds[columns.label]
        if columns.label in look.partition:
            kind = infer_label_type([look.partition[columns.label]]) or "null"
        elif columns.label is not None:
            seen.labels.take_names(class_names(table.schema, columns.label), rows=rows > 0)
        self._take(seen, columns, {name: look.kinds[name] for name in columns.meta}, kind, info.path)
        if columns.holds == "URIs":
            seen.labels.text = seen.labels.text or kind == "string"
            seen.labels.digits = seen.labels.digits or columns.label in look.partition
            constant = tuple(look.partition.items())
            yield from uri_rows(info.path, columns, cell_tuples(table, columns, dict(constant)), tuple, seen, where, csv=False)
            return
        if self.config.image_root is not None and columns.holds == "bytes" and "path" not in _fields(table, columns):
            raise SourceError(f"{where}: --image-root was given, but column {columns.image} holds images, not paths. Leave it out")
        self._newer(look, kind)
        if columns.label in look.partition:
            seen.labels.digits = True
            taken = rows if look.scan.wanted is None else int(look.scan.wanted.sum())
            look.scan.take_label(seen.labels.new(look.partition[str(columns.label)], where), taken)
            kind = "null"
        seen.take_scan(look.scan, kind)
        seen.take_paths(look.paths, readable_text(info.path))
        self.summary.splits.update(look.scan.splits)
        yield from self._slices(info, table.group_rows, look.scan.wanted, seen)

    def _newer(self, look: _Look, kind: str) -> None:
        """Note whether format 1.0 would read the rows of this table otherwise."""
        columns = look.columns
        plain = kind in ("int64", "string", "null") and all(look.kinds[name] in SCALARS[:4] for name in columns.meta)
        partition = any(name in look.partition for name in columns.names)
        self.summary.newer_inputs |= (
            may_be_absent(look.table, columns)
            or not plain
            or partition
            or columns.holds == "encoded"
            or look.scan.empty_labels
            or look.scan.wanted is not None
        )

    def _take(self, seen: Seen, columns: Columns, meta_kinds: dict[str, str], kind: str, path: str) -> None:
        """Take the columns of the table at `path`. Raises SourceError if it holds images in another way than the tables before."""
        first, where = seen.first, self.store.place(path)
        if wanted_split(self.config, path) is not None and columns.split is None:
            raise SourceError(
                f"{where}: --split is {self.config.split}; neither its name nor a folder tells a split, and it has no column `split`. "
                "Leave --split out"
            )
        if first is not None and first.holds != columns.holds:
            raise SourceError(
                f"{where}: column {columns.image} holds {columns.holds}; expected {first.holds}, as in the first table. Take it alone"
            )
        if first is not None and (first.label is None) != (columns.label is None):
            seen.summary.notes.append(f"{where} has {'no' if columns.label is None else 'a'} label column, unlike the first table")
        if first is None or (first.label is None and columns.label is not None):
            seen.first = columns
        if seen.labels.kind is None and columns.label is not None and kind != "null":
            seen.labels.kind = "string" if kind == "string" else "int64"
        seen.label_kind = seen.label_kind or ("" if kind == "null" else kind)
        seen.meta.take_types(meta_kinds)

    def _slices(self, info: ObjectInfo, group_rows: Iterable[int], wanted: npt.NDArray[np.bool_] | None, seen: Seen) -> Iterator[PlanRow]:
        name, stop = readable_text(info.path), 0
        for group, rows in enumerate(group_rows):
            first, stop = stop, stop + rows
            if rows > LARGE_ROW_GROUP and not self.summary.notes:
                self.summary.notes.append(
                    f"row groups of {rows} rows are slow to read in slices; row groups of up to 1,000 rows are read once"
                )
            for start in range(first, stop, SLICE_ROWS):
                end = min(start + SLICE_ROWS, stop)
                inputs = end - start if wanted is None else int(wanted[start:end].sum())
                if inputs < end - start:
                    seen.other_split += end - start - inputs
                    self.summary.leave_out(OTHER_SPLIT, f"{name}#{start}", end - start - inputs)
                self.summary.rows += inputs
                if inputs:
                    yield self._slice(info, f"{name}#{group}:{start}-{end}", group, start, end, inputs)

    @staticmethod
    def _slice(info: ObjectInfo, sample_id: str, group: int, start: int, end: int, inputs: int) -> PlanRow:
        return PlanRow(
            kind="rows",
            sample_id=sample_id,
            path=info.path,
            size=info.size,
            version=info.version,
            inputs=inputs,
            row_group=group,
            row_start=start,
            row_stop=end,
        )

    def _text(self, info: ObjectInfo, where: str, seen: Seen, ids: list[npt.NDArray[np.uint64]]) -> Iterator[PlanRow]:
        """Yield the rows of a table of text."""
        table = open_text(self.store, info)
        self.summary.notes += table.notes
        rows = table.rows()
        head = peeked(rows)
        if not head and not table.names:
            self.summary.leave_out("empty tables", readable_text(info.path))
            return
        partition = {name: value for name, value in partition_of(readable_text(info.path)).items()}
        values = cells_by_column(table, head)
        partition = {name: value for name, value in partition.items() if name not in values}
        kinds = {name: kind_of_values(cells) if table.is_json else "string" for name, cells in values.items()}
        kinds |= dict.fromkeys(partition, "string")
        columns = choose_columns(kinds, self.config, where, usual=table.usual)
        if columns.image is not None and looks_encoded(values.get(columns.image, [])):
            columns = replace(columns, holds="encoded")
        if not table.is_json:
            kinds |= {name: infer_meta_type([cell or None for cell in values.get(name, [])]) for name in columns.meta}
            if columns.label is not None:
                cells = [cell or None for cell in values.get(columns.label, [partition.get(columns.label)])]
                kinds[columns.label] = infer_label_type(cells) or "string"
                seen.labels.digits = kinds[columns.label] == "int64"
                seen.labels.floats = whole_floats(cells)
        kind = "null" if columns.label is None else kinds[columns.label]
        if columns.label is not None and kind == "string" and not seen.labels.floats and any(values.get(columns.label, [True])):
            seen.labels.text = True
        self._take(seen, columns, {name: kinds[name] for name in columns.meta}, "int64" if seen.labels.floats else kind, info.path)
        names = tuple(name for name in columns.names if name not in partition)
        picked = table.picker(names)
        if columns.holds == "encoded":
            yield from encoded_slices(table, columns, partition, where, seen, ids)
            return
        order = [names.index(name) if name in names else len(names) + list(partition).index(name) for name in columns.names]
        constant = tuple(partition.values())
        pick = picked if not constant else lambda row: tuple([(*picked(row), *constant)[place] for place in order])
        yield from uri_rows(info.path, columns, chain(head, rows), pick, seen, where, csv=not table.is_json)


def _fields(table: ColumnTable, columns: Columns) -> list[str]:
    kind = table.schema.field(columns.image).type
    return [kind.field(place).name for place in range(kind.num_fields)]
