"""Small specs, ids and rows of every layout, shared by the shard tests and make_golden.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.codebook import codebook_sha256
from tokenshards.pipeline.shards.codecs import get_codec
from tokenshards.pipeline.shards.spec import CodebookInfo, Layout, Preprocess, TokenizerSpec
from tokenshards.pipeline.shards.writer import EncodedShard, ShardRows, encode_shard

LAYOUTS: dict[str, Layout] = {
    "grid": Layout(kind="grid", grid=(3, 4), sites=12),
    "grid_residual": Layout(kind="grid", grid=(3, 4), sites=12, ids_per_site=3, combine="sum"),
    "grid_concat": Layout(kind="grid", grid=(2, 2), sites=4, ids_per_site=2, combine="concat"),
    "grid_variable": Layout(kind="grid", grid=(5, 4), sites=20, ids_per_site=2, combine="sum", variable=True),
    "pyramid": Layout(kind="pyramid", scales=((1, 1), (2, 2), (3, 3)), sites=14),
    "sequence": Layout(kind="sequence", sites=9, ordered=True),
    "sequence_variable": Layout(kind="sequence", sites=16, variable=True, ordered=True, prefix_decodable=True, min_sites=2),
    "video": Layout(kind="video", grid=(2, 2, 3), sites=12, ids_per_site=2, combine="sum"),
    "video_variable": Layout(kind="video", grid=(3, 2, 3), sites=18, variable=True),
}


def codebook(vocabulary: tuple[int, ...] = (7,)) -> dict[str, np.ndarray]:
    return {f"level_{level}": np.arange(size * 2, dtype=np.float32).reshape(size, 2) for level, size in enumerate(vocabulary)}


def make_spec(
    layout: str | Layout, vocabulary: int | tuple[int, ...] = 200, *, tables: dict[str, np.ndarray] | None = None
) -> TokenizerSpec:
    layout = LAYOUTS[layout] if isinstance(layout, str) else layout
    sizes = (vocabulary,) * layout.ids_per_site if isinstance(vocabulary, int) else vocabulary
    info = None if tables is None else CodebookInfo(sha256=codebook_sha256(tables), dims=tuple(table.shape[1] for table in tables.values()))
    return TokenizerSpec(family="test", layout=layout, vocabulary=sizes, preprocess=Preprocess(size=32), codebook=info)


def make_tokens(spec: TokenizerSpec, rows: int, seed: int = 0) -> TokenBatch:
    rng = np.random.default_rng(seed)
    layout, dtype = spec.layout, spec.id_dtype
    shapes_BD = lengths_B = None
    sites = layout.sites
    used_BL = np.ones((rows, sites), bool)
    if layout.variable:
        if layout.kind == "sequence":
            counts_B = lengths_B = rng.integers(layout.min_sites, sites + 1, rows).astype(np.int32)
        else:
            shapes_BD = np.stack([rng.integers(1, n + 1, rows) for n in layout.grid], axis=1).astype(np.int32)
            counts_B = shapes_BD.prod(axis=1)
        sites = int(counts_B.max())
        used_BL = np.arange(sites) < counts_B[:, None]
    levels = [rng.integers(0, size, (rows, sites)) * used_BL for size in spec.vocabulary]
    return TokenBatch(np.stack(levels, axis=2).astype(dtype), lengths_B, shapes_BD)


def make_rows(count: int, *, first: int = 0, labels: list[Any] | None = None, meta: dict[str, list[Any]] | None = None) -> ShardRows:
    numbers = np.arange(first, first + count)
    return ShardRows(
        sample_id=[f"class_{n % 3}/image_{n:05d}.jpg" for n in numbers],
        view=np.zeros(count, np.int16),
        label=labels or [None] * count,
        meta=meta or {},
        orig_width=(numbers + 100).astype(np.int32),
        orig_height=(numbers + 200).astype(np.int32),
        orig_bytes=(numbers * 10 + 1000).astype(np.int64),
    )


def make_shard(
    spec: TokenizerSpec, tokens: TokenBatch, *, codec: str = "default", rows: ShardRows | None = None, **options: Any
) -> EncodedShard:
    settings: dict[str, Any] = {"label_type": None, "meta_types": {}, **options}
    return encode_shard(rows or make_rows(len(tokens)), tokens, spec=spec, codec=get_codec(codec), **settings)


def assert_same_tokens(found: TokenBatch, expected: TokenBatch) -> None:
    assert found.ids_BLQ.dtype == expected.ids_BLQ.dtype
    np.testing.assert_array_equal(found.ids_BLQ, expected.ids_BLQ)
    for name in ("lengths_B", "shapes_BD"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == np.int32
            np.testing.assert_array_equal(left, right)
