"""Read the rows of a quarantine file of any size, in bounded memory, and without the bytes of the inputs where nobody wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenshards.pipeline.errors import BadInput, CorruptObjectError, shorten
from tokenshards.pipeline.shards.commit import ObjectRef
from tokenshards.pipeline.shards.schema import KEY_PREFIX, quarantine_schema
from tokenshards.pipeline.shards.version import check_version
from tokenshards.pipeline.storage.object_file import RangeReader
from tokenshards.pipeline.storage.store import Store

__all__ = ["quarantine_rows"]

READ_ROWS = 16
"""Rows in memory at once; each may hold 4 MiB."""
BUFFER_BYTES = 1 << 20


def quarantine_rows(store: Store, reference: ObjectRef, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the named columns of each row, in order; only their bytes are fetched. Raises CorruptObjectError or FormatVersionError."""
    path = reference.path
    schema = pa.schema([quarantine_schema().field(name) for name in names])
    try:
        raw = RangeReader(store, path, reference.size)
        with pq.ParquetFile(raw, page_checksum_verification=True, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            version = (file.metadata.metadata or {}).get(f"{KEY_PREFIX}format_version".encode(), b"")
            check_version(version.decode(), path)
            for batch in file.iter_batches(READ_ROWS, columns=list(names), use_threads=False):
                yield from pa.Table.from_batches([batch]).select(list(names)).cast(schema).to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, BadInput) as error:
        raise CorruptObjectError(path, f"not a quarantine file ({shorten(str(error))}); {reference.size} bytes") from None
