"""The few types that cross stages.

Shapes: B images, H height, W width, C = 3 channels, L sites, Q ids per site, D dimensions of a layout's shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadInput

__all__ = ["FailedRecord", "ImageRecord", "Label", "PlanRow", "TokenBatch"]

Label: TypeAlias = int | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One planned slice of the source: a file, a whole tar, or rows of one Parquet row group."""

    kind: str
    """`file`, `tar` or `rows`."""
    sample_id: str
    """Unique id of a file row; of a slice, a name such as `a.tar` or `t.parquet#3:0-1000`."""
    path: str
    """Path relative to the source root, or an absolute URL when a table gave one."""
    size: int
    """Bytes of the object at planning, -1 where unknown (a URL in a table)."""
    version: str
    """etag, else `size-mtime_ns`; empty where unknown."""
    inputs: int
    """Inputs in this slice, -1 for a tar, whose members are counted at commit."""
    label: Label = None
    meta: dict[str, Any] = field(default_factory=dict)
    row_group: int = -1
    row_start: int = 0
    row_stop: int = 0
    only: tuple[str, ...] | None = None
    """For a retried slice: the sample ids to take; the others were committed earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One encoded image with what the source knows of it."""

    sample_id: str
    data: bytes
    label: Label = None
    meta: dict[str, Any] = field(default_factory=dict)
    uri: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRecord:
    """One input that failed before it was decoded; becomes a quarantine row."""

    sample_id: str
    error: BadInput
    data: bytes | None = None
    label: Label = None
    uri: str = ""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Ids of a batch. Where sites vary, `ids_BLQ` is padded with zeros up to the longest row."""

    ids_BLQ: npt.NDArray[np.unsignedinteger[Any]]
    lengths_B: npt.NDArray[np.int32] | None = None
    """Sites per row, for layouts of variable length."""
    shapes_BD: npt.NDArray[np.int32] | None = None
    """Grid per row ((h, w) or (t, h, w)), for grids and videos of variable size."""

    def __len__(self) -> int:
        return int(self.ids_BLQ.shape[0])
