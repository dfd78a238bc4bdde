"""What all codecs of token columns share: the protocol, the check of ids, and the lengths of rows.

A codec turns a batch of ids into the token columns of a shard, and back. It alone decides the token columns, their Parquet encoding and
their compression, and works on whole batches. `codecs` has the registry.

Shapes: B rows, L sites (those of the longest row if rows vary), Q ids per site, D dimensions of a layout's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenshards.pipeline.errors import shorten
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.spec import TokenizerSpec

__all__ = [
    "Codec",
    "PageOptions",
    "check_tokens",
    "column_names",
    "require_sites",
    "row_lengths",
    "size_columns",
    "single_column",
    "stored_lengths",
    "used_sites",
]


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

    @property
    def format_version(self) -> str:
        """Version of the format that a shard with these columns needs."""

    def model_copy(self) -> str | None:
        """Return the text of the footer key `codec.model`, from which a reader can make the codec; None if the name is enough."""

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
        lengths_B = row_lengths(tokens, spec)
        low, high = int(lengths_B.min(initial=layout.sites)), int(lengths_B.max(initial=0))
        if low < layout.min_sites or high > min(sites, layout.sites):
            raise ValueError(f"rows have {low} to {high} sites; expected {layout.min_sites} to {min(sites, layout.sites)}")
        ids_BLQ = np.where(used_sites(lengths_B, sites)[:, :, None], ids_BLQ, 0)
    for level, size in enumerate(spec.vocabulary):
        level_ids = ids_BLQ[:, :, level]
        least, most = int(level_ids.min(initial=0)), int(level_ids.max(initial=0))
        if least < 0 or most >= size:
            raise ValueError(f"ids of level {level} go from {least} to {most}; its vocabulary has {size} codes, 0 to {size - 1}")
    return TokenBatch(ids_BLQ.astype(spec.id_dtype, copy=False), lengths_B if layout.kind == "sequence" else None, shapes_BD)


def column_names(spec: TokenizerSpec) -> tuple[str, ...]:
    """Return `tokens`, and also `length` or `shape` if rows vary."""
    if not spec.layout.variable:
        return ("tokens",)
    return ("tokens", "length" if spec.layout.kind == "sequence" else "shape")


def size_columns(tokens: TokenBatch, spec: TokenizerSpec) -> dict[str, pa.Array]:
    """Return the column `length` or `shape` of a batch; none if all rows have one size."""
    if not spec.layout.variable:
        return {}
    if spec.layout.kind == "sequence":
        return {"length": pa.array(row_lengths(tokens, spec))}
    return {"shape": pa.FixedSizeListArray.from_arrays(pa.array(_row_shapes(tokens).reshape(-1)), type=_shape_type(spec))}


def used_sites(lengths_B: npt.NDArray[np.int32], sites: int) -> npt.NDArray[np.bool_]:
    """Return bool [B, L], whether a site belongs to its row."""
    return np.arange(sites, dtype=np.int32) < lengths_B[:, None]


def _row_shapes(tokens: TokenBatch) -> npt.NDArray[np.int32]:
    """Return the shape [B, D] of each row; raises ValueError if the batch has none."""
    if tokens.shapes_BD is None:
        raise ValueError("shapes_BD is None; rows of this layout vary and need [B, D] grid shapes")
    return tokens.shapes_BD.astype(np.int32, copy=False)


def row_lengths(tokens: TokenBatch, spec: TokenizerSpec) -> npt.NDArray[np.int32]:
    """Return the sites [B] of each row of a layout that varies; raises ValueError if lengths or shapes are missing or not allowed."""
    rows = len(tokens)
    if spec.layout.kind == "sequence":
        if tokens.lengths_B is None or tokens.lengths_B.shape != (rows,):
            raise ValueError(f"lengths_B is {shorten(tokens.lengths_B)}; rows of this layout vary and need [{rows}] lengths")
        return tokens.lengths_B.astype(np.int32, copy=False)
    shapes_BD = _row_shapes(tokens)
    if shapes_BD.shape != (rows, spec.layout.shape_dims):
        raise ValueError(f"shapes_BD has shape {shapes_BD.shape}; expected {(rows, spec.layout.shape_dims)}")
    return _sites_of(shapes_BD, spec)


def _sites_of(shapes_BD: npt.NDArray[np.int32], spec: TokenizerSpec) -> npt.NDArray[np.int32]:
    wrong = np.flatnonzero(((shapes_BD < 1) | (shapes_BD > np.array(spec.layout.grid))).any(axis=1))
    if wrong.size:
        raise ValueError(f"row {wrong[0]} has the grid {shapes_BD[wrong[0]].tolist()}; expected 1 to {list(spec.layout.grid)}")
    lengths_B: npt.NDArray[np.int32] = shapes_BD.prod(axis=1, dtype=np.int32)
    return lengths_B


def stored_lengths(columns: pa.Table, spec: TokenizerSpec) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32] | None]:
    """Return the sites [B] of each row from the columns of a layout that varies, and the shapes [B, D] if the layout has shapes."""
    if spec.layout.kind == "sequence":
        return single_column(columns, "length", pa.int32()).to_numpy(), None
    shapes = single_column(columns, "shape", _shape_type(spec))
    shapes_BD = shapes.flatten().to_numpy().reshape(len(shapes), spec.layout.shape_dims)
    return _sites_of(shapes_BD, spec), shapes_BD


def single_column(columns: pa.Table, name: str, expected: pa.DataType) -> pa.Array:
    """Return a column as one array; raises ValueError if the column has another type or nulls."""
    column = columns.column(name)
    if column.type != expected or column.null_count:
        raise ValueError(f"column {name} is {column.type} with {column.null_count} nulls; expected {expected} without nulls")
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def require_sites(lengths_B: npt.NDArray[np.int32], spec: TokenizerSpec) -> int:
    """Return the sites of the longest row; raises ValueError if a row has more or fewer than the layout allows."""
    sites = int(lengths_B.max(initial=0))
    if int(lengths_B.min(initial=spec.layout.sites)) < spec.layout.min_sites or sites > spec.layout.sites:
        raise ValueError(f"rows have up to {sites} sites; expected {spec.layout.min_sites} to {spec.layout.sites}")
    return sites


def _shape_type(spec: TokenizerSpec) -> pa.DataType:
    """Return the Arrow type of the column `shape`."""
    return pa.list_(pa.field("element", pa.int32(), nullable=False), spec.layout.shape_dims)
