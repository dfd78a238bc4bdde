"""The rows of one table file, Parquet or text, as plain values."""

from __future__ import annotations

import csv
import io
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import (
    BadInput,
    MissingObjectError,
    Reason,
    SourceError,
    Stage,
    TransientStorageError,
    UnreadableObjectError,
)
from tokenshards.pipeline.records import FailedRecord, PlanRow
from tokenshards.pipeline.sources.fetch import unreadable_input
from tokenshards.pipeline.sources.labels.values import valid_utf8
from tokenshards.pipeline.sources.tables.earlier_columns import Columns
from tokenshards.pipeline.sources.tables.text import json_rows
from tokenshards.pipeline.storage.object_file import RangeReader, open_stream
from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = [
    "PAGE_BUFFER_BYTES",
    "PEEKED_ROWS",
    "READ_ERRORS",
    "READ_ROWS",
    "failed_rest",
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
READ_ERRORS = (TransientStorageError, MissingObjectError, BadInput, SourceError, *PARSE_ERRORS)


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
        yield from json_rows(text)


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
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{where}: the table is not in UTF-8 (byte 0x{error.object[error.start]:02x}); expected UTF-8, or UTF-16 with its mark. Save "
            "the table as UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from error
    except PARSE_ERRORS as error:
        raise SourceError(f"{where}: the table cannot be read ({type(error).__name__}: {error}); repair it or leave it out") from error
    except (BadInput, MissingObjectError) as error:
        raise SourceError(f"{where}: the table disappeared or changed during the read ({error}); plan again") from error


def failed_rest(error: Exception, row: PlanRow, number: int, uri: str, config: SourceConfig) -> Iterator[FailedRecord]:
    """Yield a failed record for each row of a planned slice from row `number` on, because the table could not be read there.

    `error` is one of READ_ERRORS. It is raised again if it is an outage, or if unreadable objects stop the job.
    """
    if isinstance(error, UnreadableObjectError):
        allowed = unreadable_input(error, config)
        if isinstance(allowed, UnreadableObjectError):
            raise error
        failure = allowed
    elif isinstance(error, TransientStorageError):
        raise error
    elif isinstance(error, MissingObjectError):
        failure = BadInput(Reason.MISSING, str(error), Stage.FETCH)
    elif isinstance(error, BadInput):
        failure = error
    else:
        failure = BadInput(Reason.BAD_CONTAINER, f"{uri} cannot be read from row {number}: {error}", Stage.FETCH)
    name = row.sample_id.rpartition("#")[0]
    for missing in range(number, row.row_stop):
        row_id = f"{name}#{missing}"
        if row.only is None or row_id in row.only:
            yield FailedRecord(sample_id=row_id, error=failure, uri=f"{uri}#{missing}")
