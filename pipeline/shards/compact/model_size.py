"""How large a model may be, and how many hidden numbers pay for themselves in a dataset."""

from __future__ import annotations

import math

from tokenshards.pipeline.shards.codebook import FOOTER_LIMIT_BYTES
from tokenshards.pipeline.shards.compact.code_tree import BRANCHES, digits_for
from tokenshards.pipeline.shards.compact.contexts import Slot, slots_of
from tokenshards.pipeline.shards.compact.model import node_starts
from tokenshards.pipeline.shards.spec import TokenizerSpec

__all__ = ["WIDEST", "affordable_slots", "paying_width"]

SMALL, MEDIUM, LARGE = 256 << 10, 1 << 20, 4 << 20
"""Bytes of a model: for one level of up to 400 codes, for up to 1,024 codes, for more."""

NARROWEST, WIDEST = 8, 32
GAINS = {16: 0.04, 32: 0.015}
"""Which share of the streams so many hidden numbers save over half of them. Measured: 4 to 6 %, and 0.6 to 2.7 %."""
STREAM_SHARE = 0.7
"""Of the bytes of equally frequent ids, which streams take."""


def affordable_slots(spec: TokenizerSpec, hidden: int) -> tuple[tuple[Slot, ...], ...]:
    """Return for each level as many slots as fit into the size of a model, the most telling ones."""
    sizes = spec.vocabulary
    room = (SMALL if len(sizes) == 1 and sizes[0] <= 400 else MEDIUM if max(sizes) <= 1024 else LARGE) // len(sizes)
    found = []
    for level, own in enumerate(slots_of(spec.layout)):
        left, kept = room - _nodes_bytes(sizes[level], hidden), 0
        for slot in own:
            left -= _table_bytes(sizes[slot.level], hidden)
            kept += left >= 0
        found.append(own[:kept])
    return tuple(found)


def paying_width(spec: TokenizerSpec, rows: int) -> int:
    """Return how many hidden numbers make a dataset of so many rows smallest, with its model."""
    bits = spec.layout.sites * sum(math.log2(size) for size in spec.vocabulary)
    streams, width = STREAM_SHARE * rows * bits / 8, NARROWEST
    while width < WIDEST and _stored_bytes(spec, 2 * width) - _stored_bytes(spec, width) <= GAINS[2 * width] * streams:
        width *= 2
    return width


def _stored_bytes(spec: TokenizerSpec, hidden: int) -> int:
    """Return the bytes of a model in `tokenizer/` and of its copy in a footer, if it fits there."""
    size = _model_bytes(spec, hidden)
    return size if size > FOOTER_LIMIT_BYTES else 2 * size


def _model_bytes(spec: TokenizerSpec, hidden: int) -> int:
    sizes = spec.vocabulary
    slots = affordable_slots(spec, hidden)
    tables = sum(_table_bytes(sizes[slot.level], hidden) for own in slots for slot in own)
    return tables + sum(_nodes_bytes(size, hidden) for size, own in zip(sizes, slots, strict=True) if own)


def _table_bytes(codes: int, hidden: int) -> int:
    return (codes + 1) * hidden * 2


def _nodes_bytes(codes: int, hidden: int) -> int:
    return node_starts(digits_for(codes))[-1] * BRANCHES * (hidden + 4)
