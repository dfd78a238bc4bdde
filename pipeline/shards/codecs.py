"""A registry of codecs: a codec turns a batch of ids into the token columns of a shard, and back.

A codec alone decides the token columns, their Parquet encoding and their compression. It works on whole batches. A codec with a byte format
of its own would use a single BINARY column with `PageOptions(encoding="DELTA_LENGTH_BYTE_ARRAY", compression="none")`, and could keep its
model under a footer key that begins with `tokenshards.codec.`.

Shapes: B rows, L sites (those of the longest row if rows vary), Q ids per site, D dimensions of a layout's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.spec import TokenizerSpec

__all__ = ["Codec", "PageOptions", "check_tokens", "codec_names", "get_codec"]

LARGEST_DICTIONARY = 1 << 16
"""Largest vocabulary for dictionary encoding; for more codes a dictionary page costs more than it saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOptions:
    """How Parquet stores the token columns."""

    encoding: str
    """`RLE_DICTIONARY`, or an encoding that ParquetWriter's `column_encoding` takes."""
    compression: str = "zstd"
    level: int | None = None
    page_bytes: int
    """Size of a data page before compression; zstd compresses each page on its own."""
    row_group_rows: int


class Codec(Protocol):
    """Convert ids to Arrow columns and back. Equal inputs must give equal columns."""

    @property
    def name(self) -> str:
        """Registry name, written to the footer."""

    def columns(self, spec: TokenizerSpec) -> tuple[str, ...]:
        """Return the names of the columns that `encode` returns and `decode` needs."""

    def encode(self, tokens: TokenBatch, spec: TokenizerSpec) -> dict[str, pa.Array]:
        """Return the columns of a batch that `check_tokens` accepts."""

    def decode(self, columns: pa.Table, spec: TokenizerSpec) -> TokenBatch:
        """Return the batch; raises ValueError if the columns cannot come from `encode`."""

    def page_options(self, spec: TokenizerSpec) -> Sequence[PageOptions]:
        """Return one or more candidates for storing the columns; the writer keeps the smallest file."""


def check_tokens(tokens: TokenBatch, spec: TokenizerSpec) -> TokenBatch:
    """Return the batch in the spec's dtype; raises ValueError if shape, lengths or an id contradict the spec."""
    layout, ids_BLQ = spec.layout, tokens.ids_BLQ
    if ids_BLQ.ndim != 3 or ids_BLQ.shape[2] != layout.ids_per_site or ids_BLQ.dtype.kind not in "ui":
        raise ValueError(f"ids are {ids_BLQ.dtype} {ids_BLQ.shape}; expected unsigned integers [B, L, {layout.ids_per_site}]")
    sites = ids_BLQ.shape[1]
    lengths_B, shapes_BD = tokens.lengths_B, tokens.shapes_BD
    if not layout.variable:
        if lengths_B is not None or shapes_BD is not None:
            raise ValueError("lengths or shapes were given for a layout of fixed length; expected None")
        if sites != layout.sites:
            raise ValueError(f"rows have {sites} sites; the spec has {layout.sites}")
    else:
        lengths_B = _row_lengths(tokens, spec)
        low, high = int(lengths_B.min(initial=layout.sites)), int(lengths_B.max(initial=0))
        if low < layout.min_sites or high > min(sites, layout.sites):
            raise ValueError(f"rows have {low} to {high} sites; expected {layout.min_sites} to {min(sites, layout.sites)}")
        ids_BLQ = np.where(_used(lengths_B, sites)[:, :, None], ids_BLQ, 0)
    for level, size in enumerate(spec.vocabulary):
        level_ids = ids_BLQ[:, :, level]
        least, most = int(level_ids.min(initial=0)), int(level_ids.max(initial=0))
        if least < 0 or most >= size:
            raise ValueError(f"ids of level {level} go from {least} to {most}; its vocabulary has {size} codes, 0 to {size - 1}")
    return TokenBatch(ids_BLQ.astype(spec.id_dtype, copy=False), lengths_B if layout.kind == "sequence" else None, shapes_BD)


@dataclass(frozen=True, slots=True)
class ListCodec:
    """Store ids as Parquet lists of unsigned integers, which every Parquet reader understands; see SPEC.md, "Token columns"."""

    name: str
    level: int
    encodings: tuple[str, ...]
    page_bytes: int
    row_group_rows: int

    def columns(self, spec: TokenizerSpec) -> tuple[str, ...]:
        """Return `tokens`, and also `length` or `shape` if rows vary."""
        if not spec.layout.variable:
            return ("tokens",)
        return ("tokens", "length" if spec.layout.kind == "sequence" else "shape")

    def encode(self, tokens: TokenBatch, spec: TokenizerSpec) -> dict[str, pa.Array]:
        """Store all L ids of level 0, then of level 1, …, row by row."""
        ids_BQL = tokens.ids_BLQ.transpose(0, 2, 1)
        rows, levels, sites = ids_BQL.shape
        kind = _token_type(spec)
        if not spec.layout.variable:
            return {"tokens": pa.FixedSizeListArray.from_arrays(pa.array(ids_BQL.reshape(-1)), type=kind)}
        lengths_B = _row_lengths(tokens, spec)
        used_BQL = np.broadcast_to(_used(lengths_B, sites)[:, None, :], (rows, levels, sites))
        offsets = np.zeros(rows + 1, np.int64)
        np.cumsum(lengths_B.astype(np.int64) * levels, out=offsets[1:])
        if offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError(f"a shard of {offsets[-1]} ids; at most {np.iinfo(np.int32).max} fit. Use fewer --shard-rows")
        ids = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids_BQL[used_BQL]), type=kind)
        if spec.layout.kind == "sequence":
            return {"tokens": ids, "length": pa.array(lengths_B)}
        return {"tokens": ids, "shape": pa.FixedSizeListArray.from_arrays(pa.array(_shapes(tokens).reshape(-1)), type=_shape_type(spec))}

    def decode(self, columns: pa.Table, spec: TokenizerSpec) -> TokenBatch:
        """Return the ids, without a copy if the layout has a fixed length and the column is one chunk."""
        column = _single(columns, "tokens", _token_type(spec))
        rows, levels = len(column), spec.layout.ids_per_site
        values = column.flatten().to_numpy()
        if not spec.layout.variable:
            if len(values) != rows * levels * spec.layout.sites:
                raise ValueError(f"{rows} rows hold {len(values)} ids; expected {levels} x {spec.layout.sites} each")
            ids_BQL = values.reshape(rows, levels, spec.layout.sites)
            return _checked(TokenBatch(ids_BQL.transpose(0, 2, 1)), spec)
        lengths_B, shapes_BD = _stored_lengths(columns, spec)
        counts_B = np.diff(column.offsets.to_numpy())
        wrong = np.flatnonzero(counts_B != lengths_B.astype(np.int64) * levels)
        if wrong.size:
            row = int(wrong[0])
            raise ValueError(f"row {row} holds {counts_B[row]} ids; expected {levels} levels x {lengths_B[row]} sites")
        sites = int(lengths_B.max(initial=0))
        if int(lengths_B.min(initial=spec.layout.sites)) < spec.layout.min_sites or sites > spec.layout.sites:
            raise ValueError(f"rows have up to {sites} sites; expected {spec.layout.min_sites} to {spec.layout.sites}")
        padded_BQL = np.zeros((rows, levels, sites), spec.id_dtype)
        padded_BQL[np.broadcast_to(_used(lengths_B, sites)[:, None, :], padded_BQL.shape)] = values
        return _checked(TokenBatch(padded_BQL.transpose(0, 2, 1), lengths_B if shapes_BD is None else None, shapes_BD), spec)

    def page_options(self, spec: TokenizerSpec) -> tuple[PageOptions, ...]:
        """Return one candidate per encoding; a vocabulary too large for a dictionary uses BYTE_STREAM_SPLIT."""
        large = max(spec.vocabulary) > LARGEST_DICTIONARY
        encodings = ("BYTE_STREAM_SPLIT",) if large else self.encodings
        return tuple(
            PageOptions(encoding=encoding, level=self.level, page_bytes=self.page_bytes, row_group_rows=self.row_group_rows)
            for encoding in encodings
        )


def _zstd(name: str, level: int) -> ListCodec:
    # 256 KiB pages are 1.3 % smaller than 1 MiB ones at level 3, because zstd then chooses its parameters for small inputs.
    return ListCodec(name, level, ("RLE_DICTIONARY",), page_bytes=1 << 18, row_group_rows=2048)


_CODECS: dict[str, Codec] = {
    "default": _zstd("default", 3),
    # The smaller encoding depends on the tokens (5 % either way), so the writer tries both. At level 19 large pages find more matches.
    "publish": ListCodec("publish", 19, ("RLE_DICTIONARY", "BYTE_STREAM_SPLIT"), page_bytes=1 << 24, row_group_rows=8192),
}
ZSTD_LEVELS = range(1, 23)


def codec_names() -> tuple[str, ...]:
    """Return the names that `get_codec` takes; `zstd:N` stands for all zstd levels."""
    return (*_CODECS, "zstd:N")


def get_codec(name: str) -> Codec:
    """Return a codec by name: one of the registry, or `zstd:N`, which is `default` at zstd level N.

    Raises ConfigError for any other name.
    """
    if name in _CODECS:
        return _CODECS[name]
    family, _, level = name.partition(":")
    if family == "zstd" and level.isascii() and level.isdigit() and int(level) in ZSTD_LEVELS:
        return _zstd(f"zstd:{int(level)}", int(level))
    raise ConfigError(f"codec {shorten(name)} does not exist; expected one of {', '.join(codec_names())} with N from 1 to 22")


def _used(lengths_B: npt.NDArray[np.int32], sites: int) -> npt.NDArray[np.bool_]:
    return np.arange(sites, dtype=np.int32) < lengths_B[:, None]


def _shapes(tokens: TokenBatch) -> npt.NDArray[np.int32]:
    if tokens.shapes_BD is None:
        raise ValueError("shapes_BD is None; rows of this layout vary and need [B, D] grid shapes")
    return tokens.shapes_BD.astype(np.int32, copy=False)


def _row_lengths(tokens: TokenBatch, spec: TokenizerSpec) -> npt.NDArray[np.int32]:
    rows = len(tokens)
    if spec.layout.kind == "sequence":
        if tokens.lengths_B is None or tokens.lengths_B.shape != (rows,):
            raise ValueError(f"lengths_B is {shorten(tokens.lengths_B)}; rows of this layout vary and need [{rows}] lengths")
        return tokens.lengths_B.astype(np.int32, copy=False)
    shapes_BD = _shapes(tokens)
    if shapes_BD.shape != (rows, spec.layout.shape_dims):
        raise ValueError(f"shapes_BD has shape {shapes_BD.shape}; expected {(rows, spec.layout.shape_dims)}")
    return _sites_of(shapes_BD, spec)


def _sites_of(shapes_BD: npt.NDArray[np.int32], spec: TokenizerSpec) -> npt.NDArray[np.int32]:
    wrong = np.flatnonzero(((shapes_BD < 1) | (shapes_BD > np.array(spec.layout.grid))).any(axis=1))
    if wrong.size:
        raise ValueError(f"row {wrong[0]} has the grid {shapes_BD[wrong[0]].tolist()}; expected 1 to {list(spec.layout.grid)}")
    lengths_B: npt.NDArray[np.int32] = shapes_BD.prod(axis=1, dtype=np.int32)
    return lengths_B


def _stored_lengths(columns: pa.Table, spec: TokenizerSpec) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32] | None]:
    if spec.layout.kind == "sequence":
        return _single(columns, "length", pa.int32()).to_numpy(), None
    shapes = _single(columns, "shape", _shape_type(spec))
    shapes_BD = shapes.flatten().to_numpy().reshape(len(shapes), spec.layout.shape_dims)
    return _sites_of(shapes_BD, spec), shapes_BD


def _single(columns: pa.Table, name: str, expected: pa.DataType) -> pa.Array:
    column = columns.column(name)
    if column.type != expected or column.null_count:
        raise ValueError(f"column {name} is {column.type} with {column.null_count} nulls; expected {expected} without nulls")
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _token_type(spec: TokenizerSpec) -> pa.DataType:
    element = pa.field("element", pa.from_numpy_dtype(spec.id_dtype), nullable=False)
    if spec.layout.variable:
        return pa.list_(element)
    return pa.list_(element, spec.layout.sites * spec.layout.ids_per_site)


def _shape_type(spec: TokenizerSpec) -> pa.DataType:
    return pa.list_(pa.field("element", pa.int32(), nullable=False), spec.layout.shape_dims)


def _checked(tokens: TokenBatch, spec: TokenizerSpec) -> TokenBatch:
    for level, size in enumerate(spec.vocabulary):
        if size <= np.iinfo(spec.id_dtype).max:
            most = int(tokens.ids_BLQ[:, :, level].max(initial=0))
            if most >= size:
                raise ValueError(f"an id of level {level} is {most}; its vocabulary has {size} codes")
    return tokens
