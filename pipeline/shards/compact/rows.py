"""Batches of rows in coding order: rows of one shape together, each as one line of ids.

Shapes: B rows, L sites, Q ids per site, T ids of a row in coding order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.compact.contexts import Contexts, contexts_of
from tokenshards.pipeline.shards.compact.lockstep import kernels
from tokenshards.pipeline.shards.compact.model import CompactModel
from tokenshards.pipeline.shards.compact.streams import decode_rows, encode_rows, ideal_bits
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec

__all__ = ["decode_batch", "encode_batch", "expected_bits", "groups_of_shapes", "in_coding_order"]

Decoder: TypeAlias = Callable[
    [CompactModel, Contexts, Sequence[bytes], npt.NDArray[np.int64] | None],
    npt.NDArray[np.int64],
]
"""What does the work of `streams.decode_rows`."""

TOGETHER = 1 << 18
"""Ids whose chances are computed together, which takes some hundred bytes for each."""


def groups_of_shapes(
    layout: Layout, rows: int, sizes: npt.NDArray[np.int32] | None
) -> Iterator[tuple[tuple[int, ...], npt.NDArray[np.int64]]]:
    """Give each shape of a batch with the numbers of its rows. `sizes`: lengths [B] or shapes [B, D]; None for a layout of one shape."""
    if sizes is None:
        yield (layout.grid or (layout.sites,)), np.arange(rows)
        return
    found, which_B = np.unique(sizes.reshape(rows, -1), axis=0, return_inverse=True)
    for number, shape in enumerate(found):
        yield tuple(int(side) for side in shape), np.flatnonzero(which_B.ravel() == number)


def in_coding_order(ids_BLQ: npt.NDArray[np.unsignedinteger], sites: int) -> npt.NDArray[np.int64]:
    """Return int64 [B, T]: all ids of level 0, then of level 1, …"""
    return ids_BLQ[:, :sites].transpose(0, 2, 1).reshape(len(ids_BLQ), -1).astype(np.int64)


def encode_batch(model: CompactModel, tokens: TokenBatch, spec: TokenizerSpec, *, fast: bool = True) -> list[bytes]:
    """Return the stream of each row of a batch that `check_tokens` accepts. `fast`: in machine code where numba is installed."""
    compiled = kernels() if fast else None
    encode = encode_rows if compiled is None else compiled.encode_rows
    found: list[bytes] = [b""] * len(tokens)
    for shape, rows in groups_of_shapes(spec.layout, len(tokens), tokens.sizes):
        contexts = contexts_of(spec.layout, shape, model.slots)
        for part in _parts(rows, contexts):
            streams = encode(model, contexts, in_coding_order(tokens.ids_BLQ[part], len(contexts.levels_T) // spec.layout.ids_per_site))
            for row, stream in zip(part, streams, strict=True):
                found[row] = stream
    return found


def decode_batch(
    model: CompactModel,
    streams: Sequence[bytes],
    spec: TokenizerSpec,
    sizes: npt.NDArray[np.int32] | None = None,
    *,
    fast: bool = True,
    device: str | None = None,
) -> npt.NDArray[np.unsignedinteger]:
    """Return ids [B, L, Q] in the spec's dtype, padded with zeros up to the longest row; raises ValueError for a damaged stream.

    `fast`: in machine code where numba is installed. `device`: by torch there, all rows at a time.
    """
    layout, decode = spec.layout, _decoder(fast, device)
    groups = [(contexts_of(layout, shape, model.slots), rows) for shape, rows in groups_of_shapes(layout, len(streams), sizes)]
    most = max((len(contexts.levels_T) for contexts, _ in groups), default=0) // layout.ids_per_site
    ids_BLQ = np.zeros((len(streams), most, layout.ids_per_site), spec.id_dtype)
    for contexts, rows in groups:
        sites = len(contexts.levels_T) // layout.ids_per_site
        ids_BT = decode(model, contexts, [streams[row] for row in rows], rows)
        ids_BLQ[rows, :sites] = ids_BT.reshape(len(rows), layout.ids_per_site, sites).transpose(0, 2, 1)
    return ids_BLQ


def _decoder(fast: bool, device: str | None) -> Decoder:
    if device is not None:
        with optional_import(f"decoding on {device} needs torch", extra="train"):
            from tokenshards.pipeline.shards.compact.torch_streams import decoder_on
        return decoder_on(device)
    compiled = kernels() if fast else None
    return decode_rows if compiled is None else compiled.decode_rows


def expected_bits(model: CompactModel, tokens: TokenBatch, spec: TokenizerSpec) -> float:
    """Return the cross-entropy of all ids of a batch under the model, in bits: what the streams take beside their states."""
    bits = 0.0
    for shape, rows in groups_of_shapes(spec.layout, len(tokens), tokens.sizes):
        contexts = contexts_of(spec.layout, shape, model.slots)
        for part in _parts(rows, contexts):
            ids_BT = in_coding_order(tokens.ids_BLQ[part], len(contexts.levels_T) // spec.layout.ids_per_site)
            bits += float(ideal_bits(model, contexts, ids_BT).sum())
    return bits


def _parts(rows: npt.NDArray[np.int64], contexts: Contexts) -> Iterator[npt.NDArray[np.int64]]:
    count = max(1, TOGETHER // len(contexts.levels_T))
    for start in range(0, len(rows), count):
        yield rows[start : start + count]
