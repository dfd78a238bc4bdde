"""Check the masks of a shard against its commit: every pixel is decoded and counted."""

from __future__ import annotations

import numpy as np

from tokenshards.pipeline.shards.commit import Commit
from tokenshards.pipeline.shards.masks import MaskTotals, masks_of
from tokenshards.pipeline.shards.reader import ShardReader

__all__ = ["count_masks", "differs_from_commit"]


def count_masks(reader: ShardReader) -> MaskTotals | None:
    """Return rows with a mask and pixels by value of a shard, one row group in memory; None for a shard without masks.

    Raises CorruptObjectError.
    """
    if reader.mask is None:
        return None
    found = MaskTotals(format=reader.mask)
    for group in range(reader.num_row_groups):
        column = reader.read_masks(group)
        masks_BHW = masks_of(column, reader.mask)[column.is_valid().to_numpy()]
        counts_V = np.bincount(masks_BHW.ravel(), minlength=1)
        found = found.with_counts(len(masks_BHW), [(int(value), int(counts_V[value])) for value in np.flatnonzero(counts_V)])
    return found


def differs_from_commit(found: MaskTotals | None, commit: Commit) -> str:
    """Return what a commit says otherwise of the masks of its shard; empty if they agree."""
    rows, pixels = (0, {}) if found is None else (found.images, found.pixels)
    if rows != commit.masked_rows:
        return f"{rows:,} rows with a mask; its commit says {commit.masked_rows:,}"
    stated = {value: count for value, count in commit.mask_pixels}
    odd = sorted(value for value in {*pixels, *stated} if pixels.get(value) != stated.get(value))
    return f"{pixels.get(odd[0], 0):,} pixels of the value {odd[0]}; its commit says {stated.get(odd[0], 0):,}" if odd else ""
