"""Codecs that store ids as Parquet lists of unsigned integers: `default`, `publish` and `zstd:N`.

Shapes: B rows, L sites (those of the longest row if rows vary), Q ids per site.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.token_columns import (
    PageOptions,
    column_names,
    require_sites,
    row_lengths,
    single_column,
    size_columns,
    stored_lengths,
    used_sites,
)
from tokenshards.pipeline.shards.version import FORMAT_VERSION

__all__ = ["ListCodec"]

LARGEST_DICTIONARY = 1 << 16
"""Largest vocabulary for dictionary encoding; for more codes a dictionary page costs more than it saves."""


@dataclass(frozen=True, slots=True)
class ListCodec:
    """Store ids as Parquet lists of unsigned integers, which every Parquet reader understands; see SPEC.md, "Token columns"."""

    name: str
    level: int
    encodings: tuple[str, ...]
    page_bytes: int
    row_group_rows: int

    format_version = FORMAT_VERSION

    def model_copy(self) -> None:
        """Return None: the name says everything."""

    def columns(self, spec: TokenizerSpec) -> tuple[str, ...]:
        """Return `tokens`, and also `length` or `shape` if rows vary."""
        return column_names(spec)

    def encode(self, tokens: TokenBatch, spec: TokenizerSpec) -> dict[str, pa.Array]:
        """Store all L ids of level 0, then of level 1, …, row by row."""
        ids_BQL = tokens.ids_BLQ.transpose(0, 2, 1)
        rows, levels, sites = ids_BQL.shape
        kind = _token_type(spec)
        if not spec.layout.variable:
            return {"tokens": pa.FixedSizeListArray.from_arrays(pa.array(ids_BQL.reshape(-1)), type=kind)}
        lengths_B = row_lengths(tokens, spec)
        used_BQL = np.broadcast_to(used_sites(lengths_B, sites)[:, None, :], (rows, levels, sites))
        offsets = np.zeros(rows + 1, np.int64)
        np.cumsum(lengths_B.astype(np.int64) * levels, out=offsets[1:])
        if offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError(f"a shard of {offsets[-1]} ids; at most {np.iinfo(np.int32).max} fit. Use fewer --shard-rows")
        ids = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids_BQL[used_BQL]), type=kind)
        return {"tokens": ids, **size_columns(tokens, spec)}

    def decode(self, columns: pa.Table, spec: TokenizerSpec) -> TokenBatch:
        """Return the ids, without a copy if the layout has a fixed length and the column is one chunk."""
        column = single_column(columns, "tokens", _token_type(spec))
        rows, levels = len(column), spec.layout.ids_per_site
        values = column.flatten().to_numpy()
        if not spec.layout.variable:
            if len(values) != rows * levels * spec.layout.sites:
                raise ValueError(f"{rows} rows hold {len(values)} ids; expected {levels} x {spec.layout.sites} each")
            ids_BQL = values.reshape(rows, levels, spec.layout.sites)
            return _checked(TokenBatch(ids_BQL.transpose(0, 2, 1)), spec)
        lengths_B, shapes_BD = stored_lengths(columns, spec)
        counts_B = np.diff(column.offsets.to_numpy())
        wrong = np.flatnonzero(counts_B != lengths_B.astype(np.int64) * levels)
        if wrong.size:
            row = int(wrong[0])
            raise ValueError(f"row {row} holds {counts_B[row]} ids; expected {levels} levels x {lengths_B[row]} sites")
        sites = require_sites(lengths_B, spec)
        padded_BQL = np.zeros((rows, levels, sites), spec.id_dtype)
        padded_BQL[np.broadcast_to(used_sites(lengths_B, sites)[:, None, :], padded_BQL.shape)] = values
        return _checked(TokenBatch(padded_BQL.transpose(0, 2, 1), lengths_B if shapes_BD is None else None, shapes_BD), spec)

    def page_options(self, spec: TokenizerSpec) -> tuple[PageOptions, ...]:
        """Return one candidate per encoding; a vocabulary too large for a dictionary uses BYTE_STREAM_SPLIT."""
        large = max(spec.vocabulary) > LARGEST_DICTIONARY
        encodings = ("BYTE_STREAM_SPLIT",) if large else self.encodings
        return tuple(
            PageOptions(encoding=encoding, level=self.level, page_bytes=self.page_bytes, row_group_rows=self.row_group_rows)
            for encoding in encodings
        )


def _token_type(spec: TokenizerSpec) -> pa.DataType:
    element = pa.field("element", pa.from_numpy_dtype(spec.id_dtype), nullable=False)
    if spec.layout.variable:
        return pa.list_(element)
    return pa.list_(element, spec.layout.sites * spec.layout.ids_per_site)


def _checked(tokens: TokenBatch, spec: TokenizerSpec) -> TokenBatch:
    for level, size in enumerate(spec.vocabulary):
        if size <= np.iinfo(spec.id_dtype).max:
            most = int(tokens.ids_BLQ[:, :, level].max(initial=0))
            if most >= size:
                raise ValueError(f"an id of level {level} is {most}; its vocabulary has {size} codes")
    return tokens
