"""Check the masks of a shard against its commit: every pixel is decoded and counted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.pipeline.shards.commit import Commit
from tokenshards.pipeline.shards.masks import MASK, MaskTotals, masks_of
from tokenshards.pipeline.shards.reader import ShardReader

__all__ = ["count_masks", "differs_from_commit"]


def count_masks(reader: ShardReader, columns: pa.Table) -> MaskTotals | None:
    """Return rows with a mask and pixels by value of the columns of a shard; None for a shard without masks. Raises CorruptObjectError."""
    if reader.mask is None:
        return None
    column = columns.column(MASK)
    try:
        masks_BHW = masks_of(column, reader.mask)[column.is_valid().to_numpy()]
    except ValueError as error:
        raise CorruptObjectError(reader.path, str(error)) from None
    counts_V = np.bincount(masks_BHW.ravel(), minlength=1)
    pixels = [(int(value), int(counts_V[value])) for value in np.flatnonzero(counts_V)]
    return MaskTotals(format=reader.mask).with_counts(len(masks_BHW), pixels)


def differs_from_commit(found: MaskTotals | None, commit: Commit) -> str:
    """Return what a commit says otherwise of the masks of its shard; empty if they agree."""
    rows, pixels = (0, {}) if found is None else (found.images, found.pixels)
    if rows != commit.masked_rows:
        return f"{rows:,} rows with a mask; its commit says {commit.masked_rows:,}"
    stated = {value: count for value, count in commit.mask_pixels}
    odd = sorted(value for value in {*pixels, *stated} if pixels.get(value) != stated.get(value))
    return f"{pixels.get(odd[0], 0):,} pixels of the value {odd[0]}; its commit says {stated.get(odd[0], 0):,}" if odd else ""
