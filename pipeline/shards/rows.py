"""Rows of a dataset as readers get them: one row, or a batch in shard order.

Shapes: B rows, L sites (those of the longest row of a batch if rows vary), Q ids per site; H, W pixels of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokenshards.pipeline.errors import CorruptObjectError, shorten
from tokenshards.pipeline.records import Label, TokenBatch
from tokenshards.pipeline.shards.masks import MASK, Masks
from tokenshards.pipeline.words import same_fields, short_repr

__all__ = ["Batch", "Sample", "ShardData", "class_indices"]


@dataclass(frozen=True, slots=True)
class ShardData:
    """Rows of a shard: the ids, and an Arrow table of the other columns that the caller named."""

    tokens: TokenBatch
    table: pa.Table

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> ShardData:
        """Return some of the rows, padded to the longest of them."""
        tokens = self.tokens
        lengths_B = None if tokens.lengths_B is None else tokens.lengths_B[start:stop]
        shapes_BD = None if tokens.shapes_BD is None else tokens.shapes_BD[start:stop]
        counts_B = lengths_B if shapes_BD is None else shapes_BD.prod(axis=1)
        sites = tokens.ids_BLQ.shape[1] if counts_B is None else int(counts_B.max(initial=0))
        return ShardData(TokenBatch(tokens.ids_BLQ[start:stop, :sites], lengths_B, shapes_BD), self.table.slice(start, stop - start))


@dataclass(frozen=True, slots=True, eq=False)  # its own __eq__: arrays have no truth value
class Batch:
    """Rows in shard order: ids [B, L, Q], class indices, sample ids, and the extra columns that the caller named.

    >>> batch = next(tokenshards.open_dataset("photos.tokens").batches(16, columns=["orig_width"]))
    >>> batch.ids_BLQ.shape, batch.labels_B.shape, len(batch.sample_ids), batch.table.column_names
    ((16, 256, 2), (16,), 16, ['orig_width'])
    """

    tokens: TokenBatch
    labels_B: npt.NDArray[np.int64]
    """Index into `TokenDataset.classes`, -1 if a row has no label."""
    sample_ids: list[str]
    table: pa.Table
    """The columns of `batches(columns=...)`."""
    masks_BHW: Masks | None = None
    """Class numbers of the pixels, of `batches(masks=True)` and of slices; a row without a mask is all `TokenDataset.mask.ignore`."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other) if isinstance(other, Batch) else NotImplemented

    def __repr__(self) -> str:
        columns = self.table.column_names or None
        return short_repr(
            self, rows=len(self), ids_BLQ=self.ids_BLQ, labels_B=self.labels_B.tolist(), sample_ids=self.sample_ids, columns=columns
        )

    @property
    def ids_BLQ(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Ids of the batch, padded with zeros if rows vary."""
        return self.tokens.ids_BLQ


@dataclass(frozen=True, slots=True)
class Sample:
    """One row with all its columns.

    >>> sample = tokenshards.open_dataset("photos.tokens").sample("class_0/img_0000.jpg")
    >>> sample.ids_LQ.shape, sample.label, sample.row["orig_width"]
    ((256, 2), 'class_0', 64)
    """

    tokens: TokenBatch
    """A batch of one row, so that length and shape stay with the ids."""
    label: Label
    table: pa.Table
    """The row's columns except the ids."""
    mask_HW: Masks | None = field(default=None, compare=False)  # the table has it, too
    """Class numbers of the pixels; None for an image without a mask, and in a dataset without masks."""

    def __repr__(self) -> str:
        sample_id = self.row.get("sample_id")
        return short_repr(self, sample_id=sample_id, label=self.label, ids_LQ=self.ids_LQ, columns=self.table.column_names)

    @property
    def sample_id(self) -> str:
        """Id of the image in the dataset."""
        return str(self.row["sample_id"])

    @property
    def ids_LQ(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Ids of the row, [sites, ids per site]."""
        ids_LQ: npt.NDArray[np.unsignedinteger[Any]] = self.tokens.ids_BLQ[0]
        return ids_LQ

    @property
    def row(self) -> dict[str, Any]:
        """The columns except ids and mask as Python values, by name."""
        found: dict[str, Any] = self.table.drop_columns([MASK] if MASK in self.table.column_names else []).to_pylist()[0]
        return found


def class_indices(labels: pa.ChunkedArray, classes: Sequence[int | str], where: str) -> npt.NDArray[np.int64]:
    """Return the index [B] of each label in the class table, -1 for null; raises CorruptObjectError for a label outside of it."""
    if labels.null_count == len(labels):
        return np.full(len(labels), -1, np.int64)
    kind = pa.int64() if all(isinstance(name, int) for name in classes) else pa.string()
    plain = labels.cast(kind)
    indices = pc.index_in(plain, value_set=pa.array(classes, kind))
    if indices.null_count != labels.null_count:
        stray = plain.filter(pc.and_(indices.is_null(), plain.is_valid()))[0].as_py()
        raise CorruptObjectError(where, f"a shard has the label {shorten(stray)}, which is not in the class table")
    index_B: npt.NDArray[np.int64] = indices.fill_null(-1).to_numpy().astype(np.int64)
    return index_B
