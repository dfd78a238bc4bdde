"""What planning reads of a table of columns beside its schema: labels, file names and splits, never the images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.records import Label
from tokenshards.pipeline.sources.labels.cell_values import plain_label
from tokenshards.pipeline.sources.splits import known_split
from tokenshards.pipeline.sources.tables.binary import ColumnTable
from tokenshards.pipeline.sources.tables.columns import Columns
from tokenshards.pipeline.sources.tables.files import id_text

__all__ = ["Scan", "hash64", "ids_of_columns", "may_be_absent", "paths_are_there", "scan_columns"]

SCANNED_ROWS = 1 << 16
MAX_LABELS = 100_000


@dataclass(slots=True)
class Scan:
    """What was seen in one table."""

    labels: Counter[int | str] = field(default_factory=Counter)
    """Up to 100,000 labels; of more, `others` counts the rows."""
    others: int = 0
    no_label: int = 0
    whole: bool = True
    """Whether all labels are whole numbers."""
    ids: npt.NDArray[np.uint64] | None = None
    """Hashes of the ids; None if a row has none."""
    splits: Counter[str] = field(default_factory=Counter)
    null_meta: Counter[str] = field(default_factory=Counter)
    """Nulls of meta columns, as the statistics of a Parquet file tell."""
    wanted: npt.NDArray[np.bool_] | None = None
    """Which rows are of the asked split; None if all are."""
    empty_labels: bool = False
    """Whether a label is an empty text, which format 1.0 keeps as a class."""

    def take_label(self, label: Label, count: int) -> None:
        """Count rows of one label; no rows if it only decides the type."""
        if label is None:
            self.no_label += count
            return
        self.whole = self.whole and isinstance(label, int)
        if not count:
            return
        if label in self.labels or len(self.labels) < MAX_LABELS:
            self.labels[label] += count
        else:
            self.others += count


def scan_columns(table: ColumnTable, columns: Columns, config: SourceConfig, where: str, wanted: str | None) -> Scan:
    """Read the labels, splits and ids of a table. `wanted` is the split whose rows are taken, None for all."""
    scan = Scan()
    names = [name for name in (columns.label, columns.split) if name is not None and name in table.schema.names]
    if columns.split in names:
        _scan_splits(table, str(columns.split), wanted, scan)
    if columns.label in names:
        _scan_labels(table, str(columns.label), config, scan)
    scan.null_meta = _null_meta(table, columns)
    if columns.id is not None:
        scan.ids = _hashes(ids_of_columns(table, columns, where))
    return scan


def paths_are_there(table: ColumnTable, columns: Columns) -> npt.NDArray[np.int64] | int | None:
    """Return hashes of the file names in a column of {bytes, path}; the number of a row that has none although others have one; else None.

    They are those of `hash`, which differ between processes: they serve to find equal names, and others would cost ten times the time.
    """
    if columns.holds != "bytes" or columns.image is None:
        return None
    kind = table.schema.field(columns.image).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0 or not _is_text(kind.field("path").type):
        return None
    names: list[npt.NDArray[np.int64]] = []
    for batch in table.all_batches([f"{columns.image}.path"], SCANNED_ROWS):
        paths = _path_field(batch.column(batch.schema.get_field_index(columns.image)))
        absent = pc.fill_null(pc.equal(paths, ""), True)
        if (first := pc.index(absent, True).as_py()) >= 0:
            return sum(map(len, names)) + first if names or not pc.all(absent).as_py() else None
        names.append(np.fromiter(map(hash, paths.to_pylist()), np.int64, len(paths)))
    return np.concatenate(names) if names else np.zeros(0, np.int64)


def may_be_absent(table: Any, columns: Columns) -> bool:
    """Return whether rows of a table may say that they have no image, or name a file of it, as far as its footer tells."""
    file = getattr(table, "file", None)
    if columns.status is not None or file is None:
        return True
    metadata, schema = file.metadata, file.schema
    images = [place for place in range(len(schema)) if schema.column(place).path in (columns.image, f"{columns.image}.bytes")]
    statistics = (metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups) for place in images)
    return any(known is None or not known.has_null_count or known.null_count > 0 for known in statistics)


def _null_meta(table: Any, columns: Columns) -> Counter[str]:
    nulls: Counter[str] = Counter()
    metadata = table.file.metadata if columns.meta and hasattr(table, "file") else None
    if metadata is None:
        return nulls
    schema = table.file.schema
    for place in range(len(schema)):
        if (name := schema.column(place).path) in columns.meta:
            for group in range(metadata.num_row_groups):
                known = metadata.row_group(group).column(place).statistics
                nulls[name] += known.null_count if known is not None and known.has_null_count else 0
    return nulls


def _scan_labels(table: ColumnTable, name: str, config: SourceConfig, scan: Scan) -> None:
    """Count the labels of the wanted rows. Those of other splits decide the type too, so that all splits have one."""
    start = 0
    for batch in table.all_batches([name], SCANNED_ROWS):
        column = batch.column(batch.schema.get_field_index(name))
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        start, wanted = start + len(column), None if scan.wanted is None else scan.wanted[start : start + len(column)]
        if pa.types.is_nested(column.type) or pa.types.is_string_view(column.type):
            for place, value in enumerate(column.to_pylist()):
                scan.take_label(plain_label(value, first=config.label_first), 1 if wanted is None or wanted[place] else 0)
            continue
        taken = column if wanted is None else column.filter(pa.array(wanted))
        for pair in pc.value_counts(taken).to_pylist():
            scan.empty_labels = scan.empty_labels or pair["values"] == ""
            scan.take_label(plain_label(pair["values"]), pair["counts"])
        if wanted is not None:
            for value in column.unique().to_pylist():
                scan.take_label(plain_label(value), 0)


def _scan_splits(table: ColumnTable, name: str, wanted: str | None, scan: Scan) -> None:
    taken: list[npt.NDArray[np.bool_]] = []
    for batch in table.all_batches([name], SCANNED_ROWS):
        values = ["" if value is None else str(value).strip() for value in batch.column(0).to_pylist()]
        found = [known_split(value) or value.casefold() for value in values]
        scan.splits.update(split for split in found if split)
        if wanted is not None:
            taken.append(np.fromiter((split == wanted for split in found), np.bool_, len(found)))
    if wanted is not None:
        scan.wanted = np.concatenate(taken) if taken else np.zeros(0, np.bool_)


def ids_of_columns(table: ColumnTable, columns: Columns, where: str) -> Iterator[str]:
    """Yield the ids of the asked column, as text; raises SourceError if one is empty."""
    name = str(columns.id)
    of_struct = name not in table.schema.names
    number = 0
    for batch in table.all_batches([name], SCANNED_ROWS):
        column = batch.column(0)
        for value in (_path_field(column) if of_struct else column).to_pylist():
            yield id_text(value, name, number, where)
            number += 1


def _path_field(column: Any) -> Any:
    paths = pc.struct_field(column, "path")
    return paths.cast(pa.string()) if not pa.types.is_string(paths.type) else paths


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _hashes(values: Iterator[str]) -> npt.NDArray[np.uint64]:
    return np.fromiter((hash64(value) for value in values), np.uint64)


def hash64(value: str) -> int:
    """Return a hash of an id that does not change between runs."""
    return int.from_bytes(hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
