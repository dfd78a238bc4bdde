"""The bytes that the digest of a plan part covers: they identify the inputs, whatever wrote the Parquet file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenshards.pipeline.canonical import canonical_json

__all__ = ["rows_digest_input"]


def rows_digest_input(table: pa.Table) -> bytes | bytearray:
    """Return the bytes that a part's digest covers for one shard: canonical JSON of [sample_id, size, version] for every row.

    In a plan with masks in files of their own, a row with such a mask has three more members: path, size and version of the mask.
    """
    if "mask_path" in table.column_names:
        return _with_masks(table)
    sizes = pc.cast(table["size"], pa.string())
    rows = pc.binary_join_element_wise('["', table["sample_id"], '",', sizes, ',"', table["version"], '"],', "")
    text = bytearray(b"[")
    for chunk in rows.chunks:
        text += _text_of(chunk)
    if text.count(b'"') == 4 * len(rows) > 0 and b"\\" not in text and np.frombuffer(text, np.uint8).min() >= 0x20:
        text[-1:] = b"]\n"
        return text
    # JSON escapes quotes, backslashes and control characters, so the fast concatenation above would differ from JSON here.
    columns = (table["sample_id"].to_pylist(), table["size"].to_pylist(), table["version"].to_pylist())
    return canonical_json(list(zip(*columns, strict=True)))


def _text_of(strings: pa.StringArray) -> memoryview:
    """Return the concatenated strings of an array as UTF-8, without a copy."""
    _, offsets, data = strings.buffers()
    ends = np.frombuffer(offsets, np.int32)[[strings.offset, strings.offset + len(strings)]]
    return memoryview(data)[ends[0] : ends[1]]


def _with_masks(table: pa.Table) -> bytes:
    names = ("sample_id", "size", "version", "mask_path", "mask_size", "mask_version")
    rows: list[list[Any]] = []
    for sample_id, size, version, path, mask_size, mask_version in zip(*(table[name].to_pylist() for name in names), strict=True):
        mask = [] if path is None else [path.decode("utf-8", "backslashreplace"), mask_size, mask_version]
        rows.append([sample_id, size, version, *mask])
    return canonical_json(rows)
