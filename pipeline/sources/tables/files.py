"""The rows of one table file, Parquet or text, as plain values."""

from __future__ import annotations

import csv
import io
import json
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenshards.pipeline.errors import (
    BadInput,
    MissingObjectError,
    SourceError,
    shorten,
)
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.labels.values import valid_utf8
from tokenshards.pipeline.sources.tables.earlier_columns import Columns
from tokenshards.pipeline.storage.object_file import RangeReader, open_stream
from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = [
    "PAGE_BUFFER_BYTES",
    "PEEKED_ROWS",
    "READ_ROWS",
    "id_text",
    "ids_of",
    "is_parquet",
    "open_parquet",
    "parquet_rows",
    "parsing",
    "slice_values",
    "text_rows",
]

PAGE_BUFFER_BYTES = 1 << 20
PEEKED_ROWS = 4096
READ_ROWS = 32


def _zstd_errors() -> tuple[type[Exception], ...]:
    try:
        from zstandard import ZstdError
    except ImportError:  # without zstandard `open_stream` refuses .zst files
        return ()
    return (ZstdError,)


PARSE_ERRORS = (pa.ArrowException, OSError, ValueError, EOFError, RecursionError, csv.Error, zlib.error, *_zstd_errors())


def is_parquet(path: str) -> bool:
    """Return whether the name is that of a Parquet file."""
    return path.lower().endswith(".parquet")


def open_parquet(store: Store, path: str, size: int) -> Any:
    """Return a pyarrow.parquet.ParquetFile that reads the object by ranges."""
    return pq.ParquetFile(RangeReader(store, path, size), buffer_size=PAGE_BUFFER_BYTES, pre_buffer=False)


def parquet_rows(table: Any, columns: Columns) -> Iterator[dict[str, Any]]:
    """Yield the chosen columns of every row."""
    for batch in table.iter_batches(PEEKED_ROWS, columns=columns.names):
        yield from batch.to_pylist()


def slice_values(table: Any, columns: Columns, row: PlanRow) -> Iterator[dict[str, Any]]:
    """Yield the chosen columns of the rows of one planned slice."""
    # By row number, not by `row.row_group`: before a retry the table may have been rewritten with other row groups.
    stops = list(accumulate(table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)))
    groups = list(range(bisect_right(stops, row.row_start), min(bisect_left(stops, row.row_stop) + 1, len(stops))))
    if not groups:
        return
    position = stops[groups[0]] - table.metadata.row_group(groups[0]).num_rows
    # Read only the bytes of a struct. Other fields beside them may be as large as the images.
    is_struct = pa.types.is_struct(table.schema_arrow.field(columns.image).type)
    names = [f"{name}.bytes" if is_struct and name == columns.image else name for name in columns.names]
    for batch in table.iter_batches(READ_ROWS, row_groups=groups, columns=names):
        skipped = max(0, row.row_start - position)
        wanted = min(batch.num_rows, row.row_stop - position)
        position += batch.num_rows
        if skipped < wanted:
            yield from batch.slice(skipped, wanted - skipped).to_pylist()
        if position >= row.row_stop:
            return


def text_rows(store: Store, info: ObjectInfo) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV or JSONL file, compressed or not. Raises what `parsing` turns into SourceError."""
    with open_stream(store, info.path, info.size) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        if ".csv" in info.path.lower():
            for number, cells in enumerate(csv.DictReader(text, strict=True)):
                if None in cells:
                    raise ValueError(f"row {number} has more cells than the header")
                yield {name: cell or None for name, cell in cells.items()}
            return
        for number, line in enumerate(text):
            if not line.strip():  # a blank line, as at the end of some files, is not a row
                continue
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"line {number + 1} is {shorten(line)}; expected a JSON object")
            yield value


def ids_of(table: Any, column: str, where: str) -> Iterator[str]:
    """Yield the values of the id column of a Parquet file, as text."""
    number = 0
    for batch in table.iter_batches(PEEKED_ROWS, columns=[column]):
        for value in batch.column(0).to_pylist():
            yield id_text(value, column, number, where)
            number += 1


def id_text(value: object, column: str, number: int, where: str) -> str:
    """Return the id of a row; raises SourceError if it is empty."""
    if value is None or value == "":
        raise SourceError(f"{where}: row {number}: --id-column {column} is empty; expected a unique id in every row")
    return valid_utf8(str(value))


@contextmanager
def parsing(where: str) -> Iterator[None]:
    """Turn what a parser raises into SourceError that names the table."""
    try:
        yield
    except PARSE_ERRORS as error:
        raise SourceError(f"{where}: the table cannot be read ({type(error).__name__}: {error}); repair it or leave it out") from error
    except (BadInput, MissingObjectError) as error:
        raise SourceError(f"{where}: the table disappeared or changed during the read ({error}); plan again") from error
