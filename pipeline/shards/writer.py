"""Encode rows and ids as the bytes of one shard. Equal inputs give equal bytes under equal library versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshards.pipeline.canonical import canonical_json
from tokenshards.pipeline.errors import CorruptObjectError, shorten
from tokenshards.pipeline.records import Label, TokenBatch
from tokenshards.pipeline.shards.codebook import Tables, pack_codebook
from tokenshards.pipeline.shards.masks import MASK, MaskFormat, PackedMask, count_mask_pixels, mask_array
from tokenshards.pipeline.shards.schema import (
    KEY_PREFIX,
    META_PREFIX,
    LabelType,
    MetaTypes,
    quarantine_schema,
    row_schema,
)
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.token_columns import Codec, PageOptions, check_tokens
from tokenshards.pipeline.shards.version import FORMAT_VERSION, MASK_VERSION, check_version

__all__ = ["EncodedShard", "ShardRows", "encode_quarantine", "encode_shard", "read_quarantine"]

ROW_COMPRESSION_LEVEL = 3
ROW_ENCODINGS = {"sample_id": "PLAIN", "orig_bytes": "PLAIN"}
"""Columns whose values rarely repeat; all other columns use dictionaries."""
MASK_GROUP_BYTES = 1 << 25
"""Most bytes of masks in a row group, which readers decode as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRows:
    """All columns of the rows except the ids; every member has one entry per row."""

    sample_id: list[str]
    view: npt.NDArray[np.int16]
    label: list[Label]
    meta: dict[str, list[Any]]
    orig_width: npt.NDArray[np.int32]
    orig_height: npt.NDArray[np.int32]
    orig_bytes: npt.NDArray[np.int64]
    crop: npt.NDArray[np.float32] | None = None
    """[N, 4]: left, top, width, height in the source image; given together with `flip` if images have several views."""
    flip: npt.NDArray[np.bool_] | None = None
    mask: list[PackedMask] | None = None
    """Of `pack_mask`; given together with a MaskFormat."""


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """The bytes of a shard and their counts."""

    data: bytes
    rows: int
    token_bytes: int
    """Compressed bytes of the token columns."""
    id_count: int
    mask_pixels: list[list[int]] = field(default_factory=list)
    """[value, pixels] pairs over all masks."""


def encode_shard(
    rows: ShardRows,
    tokens: TokenBatch,
    *,
    spec: TokenizerSpec,
    codec: Codec,
    label_type: LabelType,
    meta_types: MetaTypes,
    mask: MaskFormat | None = None,
    codebook: Tables | None = None,
    copies: bool = True,
    extra_metadata: Mapping[str, str] | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> EncodedShard:
    """Return the Parquet bytes of one shard.

    The footer holds `extra_metadata` under `tokenshards.<key>`, and with `copies` the codebook and the codec's model, unless there is
    none or it is too large.
    Calls `on_progress` after each row group, because `publish` compresses a large shard for many minutes.
    Raises ValueError for no rows, members of unequal length, a repeated key (sample_id, view), a label or value of another type than
    stated, ids that contradict the spec, or masks that contradict `mask`.
    """
    tokens = check_tokens(tokens, spec)
    columns = _row_columns(rows, label_type, meta_types, expected=len(tokens))
    at = columns.schema.get_field_index("orig_width")
    token_columns = codec.encode(tokens, spec)
    for name, array in reversed(token_columns.items()):
        columns = columns.add_column(at, pa.field(name, array.type, nullable=False), array)
    masks = _Masks.of(rows, mask, at + len(token_columns), expected=len(tokens))
    metadata = {
        "format_version": codec.format_version if masks is None else MASK_VERSION,
        "spec": canonical_json(spec.to_json()).decode().strip(),
        "fingerprint": spec.fingerprint,
        "codec": codec.name,
        **({} if masks is None else {"mask": canonical_json(masks.format.to_json()).decode().strip()}),
        **(extra_metadata or {}),
    }
    if copies:
        packed = {"codebook": pack_codebook(codebook) if codebook else None, "codec.model": codec.model_copy()}
        metadata |= {key: text for key, text in packed.items() if text is not None}
    data = min((_write(columns, masks, options, metadata, on_progress) for options in codec.page_options(spec)), key=len)
    pixels = [] if masks is None else count_mask_pixels(masks.packed, masks.format)
    return EncodedShard(data, len(tokens), _column_bytes(data, set(token_columns)), _id_count(tokens, spec), pixels)


def encode_quarantine(rows: list[dict[str, Any]]) -> bytes:
    """Return the Parquet bytes of a quarantine file; rows have columns of `quarantine_schema`, absent ones are null."""
    unknown = {name for row in rows for name in row} - set(quarantine_schema().names)
    if not rows or unknown:
        raise ValueError(
            f"{len(rows)} quarantine rows with unknown columns {sorted(unknown)}; expected at least one row and no unknown columns"
        )
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=quarantine_schema())
    with pq.ParquetWriter(sink, table.schema, compression="zstd", use_dictionary=False, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({KEY_PREFIX + "format_version": FORMAT_VERSION})
    return bytes(sink.getvalue())


def read_quarantine(data: bytes, path: str = "quarantine file") -> list[dict[str, Any]]:
    """Return the rows of a quarantine file; raises CorruptObjectError, or FormatVersionError for a newer major version."""
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            version = (file.metadata.metadata or {}).get(f"{KEY_PREFIX}format_version".encode(), b"")
            check_version(version.decode(), path)
            rows: list[dict[str, Any]] = (
                file.read(use_threads=False).select(quarantine_schema().names).cast(quarantine_schema()).to_pylist()
            )
            return rows
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptObjectError(path, f"not a quarantine file ({shorten(str(error))}); {len(data)} bytes") from None


def _row_columns(rows: ShardRows, label_type: LabelType, meta_types: MetaTypes, *, expected: int) -> pa.Table:
    if expected == 0:
        raise ValueError("the shard has 0 rows; expected at least 1 (a shard whose inputs all failed has no file)")
    if rows.meta.keys() != meta_types.keys():
        raise ValueError(f"meta columns are {sorted(rows.meta)}; expected {sorted(meta_types)}")
    if label_type is None and any(label is not None for label in rows.label):
        raise ValueError("a row has a label, but label_type is None; expected no labels")
    values: dict[str, Any] = {
        "sample_id": rows.sample_id,
        "view": rows.view,
        "label": rows.label,
        **{META_PREFIX + name: column for name, column in rows.meta.items()},
        "orig_width": rows.orig_width,
        "orig_height": rows.orig_height,
        "orig_bytes": rows.orig_bytes,
    }
    if rows.crop is not None and rows.flip is not None:
        flat = pa.array(rows.crop.reshape(-1), pa.float32())
        element = pa.field("element", pa.float32(), nullable=False)
        values |= {"crop": pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(element, 4)), "flip": rows.flip}
    lengths = {name: len(column) for name, column in values.items() if len(column) != expected}
    if lengths:
        raise ValueError(f"{expected} rows of ids, but other lengths in {lengths}; expected one entry per row")
    if len(set(zip(rows.sample_id, rows.view.tolist(), strict=True))) != expected:
        raise ValueError("two rows have the same sample_id and view; expected unique keys")
    schema = row_schema(label_type, meta_types, several_views="crop" in values)
    return pa.table([pa.array(values[field.name], type=field.type) for field in schema], schema=schema)


@dataclass(frozen=True, slots=True)
class _Masks:
    """The masks of a shard, which become a column row group by row group, because they take much memory."""

    packed: list[PackedMask]
    format: MaskFormat
    place: int
    """Number of the column."""

    @classmethod
    def of(cls, rows: ShardRows, format: MaskFormat | None, place: int, *, expected: int) -> _Masks | None:
        found = None if rows.mask is None else len(rows.mask)
        if found != (None if format is None else expected):
            raise ValueError(f"{found} masks with the format {format}; expected {expected} masks and their format, or neither")
        return None if format is None or rows.mask is None else cls(rows.mask, format, place)

    @property
    def field(self) -> pa.Field:
        return pa.field(MASK, self.format.arrow_type)

    @property
    def most_rows(self) -> int:
        """Rows of a row group."""
        return max(1, MASK_GROUP_BYTES // (self.format.pixels * np.dtype(self.format.dtype).itemsize))

    def add_to(self, columns: pa.Table, start: int) -> pa.Table:
        return columns.add_column(self.place, self.field, mask_array(self.packed[start : start + len(columns)], self.format))


def _write(
    columns: pa.Table, masks: _Masks | None, options: PageOptions, metadata: Mapping[str, str], on_progress: Callable[[], None]
) -> bytes:
    schema = columns.schema if masks is None else columns.schema.insert(masks.place, masks.field)
    group_rows = options.row_group_rows if masks is None else min(options.row_group_rows, masks.most_rows)
    leaves = {field.name: _leaf(field) for field in schema}
    tokens = leaves["tokens"]
    encodings = {leaves[name]: encoding for name, encoding in ROW_ENCODINGS.items()}
    if options.encoding != "RLE_DICTIONARY":
        encodings[tokens] = options.encoding
    levels = dict.fromkeys(leaves.values(), options.level or ROW_COMPRESSION_LEVEL)
    if options.level is None:
        del levels[tokens]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression=dict.fromkeys(leaves.values(), "zstd") | {tokens: options.compression},
        compression_level=levels,
        use_dictionary=[leaf for leaf in leaves.values() if leaf not in encodings],
        column_encoding=encodings,
        data_page_size=options.page_bytes,
        write_statistics=[leaves["sample_id"]],
        write_page_checksum=True,
    ) as writer:
        for start in range(0, columns.num_rows, group_rows):
            piece = columns.slice(start, group_rows)
            writer.write_table(piece if masks is None else masks.add_to(piece, start), row_group_size=group_rows)
            on_progress()
        # Not as schema metadata: Arrow would store that a second time under its own footer key.
        writer.add_key_value_metadata({KEY_PREFIX + key: value for key, value in sorted(metadata.items())})
    return bytes(sink.getvalue())


def _leaf(field: pa.Field) -> str:
    listed = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    return f"{field.name}.list.element" if listed else str(field.name)


def _column_bytes(data: bytes, names: set[str]) -> int:
    metadata = pq.read_metadata(pa.BufferReader(data))
    total = 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            if column.path_in_schema.split(".")[0] in names:
                total += column.total_compressed_size
    return total


def _id_count(tokens: TokenBatch, spec: TokenizerSpec) -> int:
    if tokens.shapes_BD is not None:
        return int(tokens.shapes_BD.prod(axis=1, dtype=np.int64).sum()) * spec.layout.ids_per_site
    if tokens.lengths_B is not None:
        return int(tokens.lengths_B.sum(dtype=np.int64)) * spec.layout.ids_per_site
    return tokens.ids_BLQ.size
