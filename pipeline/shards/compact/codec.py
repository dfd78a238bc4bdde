"""The codec `compact`: each row is one stream of bytes, coded by a model of the dataset. SPEC.md, "The codec compact", has the bytes.

Shapes: B rows, L sites (those of the longest row if rows vary), Q ids per site.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.compact.model import CompactModel
from tokenshards.pipeline.shards.compact.model_file import COMPACT, packed_model, require_fit
from tokenshards.pipeline.shards.compact.processor import DECODE_DEVICE
from tokenshards.pipeline.shards.compact.rows import decode_batch, encode_batch
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.token_columns import (
    PageOptions,
    column_names,
    require_sites,
    single_column,
    size_columns,
    stored_lengths,
)
from tokenshards.pipeline.shards.version import COMPACT_VERSION

__all__ = ["CompactCodec"]

ROW_GROUP_ROWS = 2048
PAGE_BYTES = 1 << 18
MOST_BYTES = np.iinfo(np.int32).max
"""Of all streams of a shard: Arrow's offsets have 32 bits."""


@dataclass(frozen=True, slots=True)
class CompactCodec:
    """Store each row as the stream that `streams` describes, in one BINARY column."""

    model: CompactModel
    sha256: str
    format_version = COMPACT_VERSION

    @property
    def name(self) -> str:
        """`compact:` and the digest of the model."""
        return f"{COMPACT}:{self.sha256}"

    def model_copy(self) -> str | None:
        """Return the packed model, None where it is too large for a footer."""
        return packed_model(self.model)

    def columns(self, spec: TokenizerSpec) -> tuple[str, ...]:
        """Return `tokens`, and also `length` or `shape` if rows vary."""
        return column_names(spec)

    def encode(self, tokens: TokenBatch, spec: TokenizerSpec) -> dict[str, pa.Array]:
        """Return the stream of each row."""
        require_fit(self.model, spec)
        streams = encode_batch(self.model, tokens, spec)
        total = sum(map(len, streams))
        if total > MOST_BYTES:
            raise ValueError(f"the streams of a shard take {total} bytes; at most {MOST_BYTES} fit. Use fewer --shard-rows")
        return {"tokens": pa.array(streams, pa.binary()), **size_columns(tokens, spec)}

    def decode(self, columns: pa.Table, spec: TokenizerSpec) -> TokenBatch:
        """Return the ids of all rows."""
        require_fit(self.model, spec)
        streams: list[bytes] = single_column(columns, "tokens", pa.binary()).to_pylist()
        device = os.environ.get(DECODE_DEVICE) or None
        if not spec.layout.variable:
            return TokenBatch(decode_batch(self.model, streams, spec, device=device))
        lengths_B, shapes_BD = stored_lengths(columns, spec)
        require_sites(lengths_B, spec)
        ids_BLQ = decode_batch(self.model, streams, spec, lengths_B if shapes_BD is None else shapes_BD, device=device)
        return TokenBatch(ids_BLQ, lengths_B if shapes_BD is None else None, shapes_BD)

    def page_options(self, spec: TokenizerSpec) -> tuple[PageOptions, ...]:
        """Return the one way to store streams, which no compressor makes smaller."""
        encoding = "DELTA_LENGTH_BYTE_ARRAY"
        return (PageOptions(encoding=encoding, compression="none", page_bytes=PAGE_BYTES, row_group_rows=ROW_GROUP_ROWS),)
