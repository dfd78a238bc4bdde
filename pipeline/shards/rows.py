"""Rows of a dataset as readers get them: one row, or a batch in shard order.

Shapes: B rows, L sites (those of the longest row of a batch if rows vary), Q ids per site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenshards.pipeline.records import Label, TokenBatch
from tokenshards.pipeline.words import same_fields, short_repr

__all__ = ["Batch", "Sample"]


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
        """The columns except the ids as Python values, by name."""
        found: dict[str, Any] = self.table.to_pylist()[0]
        return found
