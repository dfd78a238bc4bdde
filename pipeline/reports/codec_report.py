"""The codec of a dataset for `inspect`: its name, and for `compact` what its model takes and expects."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tokenshards.pipeline.shards.compact.codec import CompactCodec
from tokenshards.pipeline.shards.compact.model_file import model_bytes
from tokenshards.pipeline.shards.compact.rows import expected_bits
from tokenshards.pipeline.shards.manifest import Manifest
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.storage.store import Store

__all__ = ["CodecReport", "codec_report"]

ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecReport:
    """What the first shard says of the codec."""

    name: str
    model_bytes: int | None = None
    """Bytes of the model's file; None for a codec without a model."""
    expected_bits_per_token: float | None = None
    """Cross-entropy of the first rows under the model: the bits per token that streams without any overhead would take."""
    rows: int = 0
    """The rows that were looked at."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are known."""
        return {name: value for name, value in asdict(self).items() if value}

    def table(self) -> list[tuple[str, ...]]:
        """Return (name, value) text."""
        if self.model_bytes is None:
            return [("codec", self.name)]
        return [
            ("codec", self.name),
            ("model", f"{self.model_bytes:,} bytes"),
            ("expected bits per token", f"{self.expected_bits_per_token:.2f}  (by the model, of the first {self.rows} rows)"),
        ]


def codec_report(store: Store, manifest: Manifest) -> CodecReport | None:
    """Return the codec of the first shard; None if there is no shard. Raises what `ShardReader.open` raises."""
    entry = next((entry for entry in manifest.shards if entry.path is not None), None)
    if entry is None:
        return None
    reader = ShardReader.open(store, str(entry.path))
    codec = reader.codec
    if not isinstance(codec, CompactCodec):
        return CodecReport(name=codec.name)
    tokens = reader.read_tokens(0)
    tokens = tokens.take(np.arange(min(ROWS, len(tokens))))
    bits = expected_bits(codec.model, tokens, reader.spec)
    ids = int(tokens.sites_B.sum()) * reader.spec.layout.ids_per_site
    size = len(model_bytes(codec.model))
    return CodecReport(name=codec.name, model_bytes=size, expected_bits_per_token=round(bits / ids, 4), rows=len(tokens))
