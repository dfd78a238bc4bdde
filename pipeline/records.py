"""The record types that pass from one stage to the next.

Shapes: B images, H height, W width, C = 3 channels, L sites, Q ids per site, D dimensions of a layout's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import BadInput
from tokenshards.pipeline.words import same_fields, short_repr

__all__ = [
    "AbsentRecord",
    "FailedRecord",
    "ImageRecord",
    "InputRecord",
    "Label",
    "LeftOutRecord",
    "PlanRow",
    "SourceRecord",
    "TokenBatch",
    "Untaken",
    "concatenate_tokens",
]

Label: TypeAlias = int | str | None


@dataclass(slots=True, kw_only=True)  # not frozen, which would double the time that each of 10^8 rows takes to make
class PlanRow:
    """One planned slice of the source: a file, a whole tar, or rows of one Parquet row group. Never changed after creation."""

    kind: str
    """`file`, `tar`, `rows`, or `absent`: an input of which the listing saw that it is not there."""
    sample_id: str
    """For a file its unique sample id; for a slice a name such as `a.tar` or `t.parquet#3:0-1000`."""
    path: str
    """Path relative to the source root, or an absolute URL from a table."""
    size: int
    """Size of the object in bytes at planning; -1 if unknown (a URL in a table)."""
    version: str
    """etag, else `size-mtime_ns`; empty if unknown."""
    inputs: int
    """Inputs in this slice; -1 for a tar, whose members are counted at commit."""
    label: Label = None
    meta: dict[str, Any] = field(default_factory=dict)
    row_group: int = -1
    row_start: int = 0
    row_stop: int = 0
    only: tuple[str, ...] | None = None
    """For retried rows of a table: the ids `path#row` to take; the other rows are committed already."""
    mask_path: str | None = None
    """Path of the mask below the folder of masks, or the place that a table names; None where no file is its mask."""
    mask_size: int = -1
    mask_version: str = ""
    """Size and version of the mask, as those of the input."""
    skip: tuple[str, ...] | None = None
    """For a retried tar or file: the sample ids to leave out, because they are committed already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One encoded image file with its label and metadata from the source."""

    sample_id: str
    data: bytes
    label: Label = None
    meta: dict[str, Any] = field(default_factory=dict)
    uri: str = ""
    keep_bytes: bool = True
    """Whether the quarantine may keep its bytes; False for a file outside the folder of the table that names it."""
    mask: bytes | None = None
    """Encoded bytes of its mask; None where it has none, or where nobody asked for masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRecord:
    """One input that failed before decoding; it becomes a quarantine row."""

    sample_id: str
    error: BadInput
    data: bytes | None = None
    label: Label = None
    uri: str = ""
    stands_for: int = 1
    """Inputs that are lost with it, estimated by bytes, where a container cannot be read on; `--max-bad` counts them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentRecord:
    """One input that the source itself says is not there: a null image, or a row that the maker of a table marked as failed."""

    sample_id: str
    uri: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutRecord:
    """Files of a container that a stated rule of the plan leaves out. They are no inputs: `PlanRow.inputs` does not count them."""

    kind: str
    """The rule as a person reads it, such as `hidden` or `second image of a sample`; equal kinds are counted together."""
    count: int
    example: str


InputRecord: TypeAlias = ImageRecord | FailedRecord | AbsentRecord
"""One input; each takes one slot of a batch."""
SourceRecord: TypeAlias = InputRecord | LeftOutRecord
"""What the slice of a plan row yields: `inputs_seen` of a shard is the number of its records, a LeftOutRecord counting `count`."""

MAX_LEFT_OUT_KINDS = 64
OTHER_KINDS = "other rules"
MAX_NAMED = 200
"""Most characters of a kind or an example."""


@dataclass(slots=True, kw_only=True)
class Untaken:
    """What becomes neither a row nor a quarantine row, in bounded size: counts, and one example of each kind."""

    absent: int = 0
    absent_example: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    left_out_examples: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    """Further inputs of damaged containers, which nobody can count; estimated by bytes. Each damage has a quarantine row."""
    lost_example: str = ""

    @property
    def left_out_count(self) -> int:
        """Files of containers that any rule left out."""
        return sum(self.left_out.values())

    @property
    def examples(self) -> dict[str, str]:
        """One example of each rule, of `absent` and of `lost`, for people."""
        others = {"absent": self.absent_example, "lost": self.lost_example}
        return {**self.left_out_examples, **{name: example for name, example in others.items() if example}}

    def take(self, record: AbsentRecord | LeftOutRecord | FailedRecord) -> None:
        """Count one record; of a failed one, what is lost with it."""
        if isinstance(record, AbsentRecord):
            self._add_absent(1, record.sample_id)
        elif isinstance(record, FailedRecord):
            self._lose(record.stands_for - 1, record.sample_id)
        elif record.count:
            self._leave_out(record.kind, record.count, record.example)

    def add(self, other: Untaken) -> None:
        """Add the counts of a batch, a commit or another generation."""
        self._add_absent(other.absent, other.absent_example)
        self._lose(other.lost, other.lost_example)
        for kind in sorted(other.left_out):
            self._leave_out(kind, other.left_out[kind], other.left_out_examples.get(kind, ""))

    def before_retry(self) -> Untaken:
        """Return what stays when all quarantined inputs are tried again: the retry finds anew what is lost with them."""
        return replace(self, lost=0, lost_example="")

    def _add_absent(self, count: int, example: str) -> None:
        self.absent += count
        self.absent_example = self.absent_example or example[:MAX_NAMED]

    def _lose(self, count: int, example: str) -> None:
        self.lost += count
        if count:
            self.lost_example = self.lost_example or example[:MAX_NAMED]

    def _leave_out(self, kind: str, count: int, example: str) -> None:
        kind = kind[:MAX_NAMED]
        if kind not in self.left_out and len(self.left_out) >= MAX_LEFT_OUT_KINDS:
            kind = OTHER_KINDS
        self.left_out[kind] = self.left_out.get(kind, 0) + count
        self.left_out_examples.setdefault(kind, example[:MAX_NAMED])


@dataclass(frozen=True, slots=True, eq=False)  # its own __eq__: arrays have no truth value
class TokenBatch:
    """Ids of a batch. If the number of sites varies, `ids_BLQ` is padded with zeros up to the longest row."""

    ids_BLQ: npt.NDArray[np.unsignedinteger[Any]]
    lengths_B: npt.NDArray[np.int32] | None = None
    """Sites per row, for layouts of variable length."""
    shapes_BD: npt.NDArray[np.int32] | None = None
    """Grid per row ((h, w) or (t, h, w)), for grids and videos of variable size."""

    def __len__(self) -> int:
        return int(self.ids_BLQ.shape[0])

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other) if isinstance(other, TokenBatch) else NotImplemented

    def __repr__(self) -> str:
        return short_repr(self, ids_BLQ=self.ids_BLQ, lengths_B=self.lengths_B, shapes_BD=self.shapes_BD)

    @property
    def sizes(self) -> npt.NDArray[np.int32] | None:
        """What tells rows of a batch apart in size: lengths [B] or shapes [B, D]; None where all have one."""
        return self.lengths_B if self.shapes_BD is None else self.shapes_BD

    @property
    def sites_B(self) -> npt.NDArray[np.int64]:
        """Number of sites of each row; further ids of the row are padding."""
        if self.shapes_BD is not None:
            sites_B: npt.NDArray[np.int64] = self.shapes_BD.prod(axis=1, dtype=np.int64)
            return sites_B
        if self.lengths_B is not None:
            return self.lengths_B.astype(np.int64)
        return np.full(len(self), self.ids_BLQ.shape[1], np.int64)

    def count_ids(self, vocabulary: Sequence[int]) -> list[npt.NDArray[np.int64]]:
        """Return per level an array [K] with the count of each of its K ids, without padding."""
        levels = [self.ids_BLQ[..., q] for q in range(len(vocabulary))]
        if self.lengths_B is not None or self.shapes_BD is not None:
            stored_BL = np.arange(self.ids_BLQ.shape[1]) < self.sites_B[:, None]
            levels = [ids_BL[stored_BL] for ids_BL in levels]
        return [np.bincount(ids.ravel(), minlength=size) for ids, size in zip(levels, vocabulary, strict=True)]

    def take(self, rows: npt.NDArray[np.intp]) -> TokenBatch:
        """Return a batch of the given rows in that order; ids stay level-major in memory."""
        ids_BQL = self.ids_BLQ.transpose(0, 2, 1)[rows]
        lengths = None if self.lengths_B is None else self.lengths_B[rows]
        shapes = None if self.shapes_BD is None else self.shapes_BD[rows]
        return TokenBatch(ids_BQL.transpose(0, 2, 1), lengths, shapes)


def concatenate_tokens(batches: list[TokenBatch]) -> TokenBatch:
    """Join batches of one layout; zeros pad all rows to the length of the longest."""
    sites = max(batch.ids_BLQ.shape[1] for batch in batches)
    total = sum(len(batch) for batch in batches)
    first = batches[0].ids_BLQ
    ids_BQL = np.zeros((total, first.shape[2], sites), first.dtype)
    start = 0
    for batch in batches:
        stop = start + len(batch)
        ids_BQL[start:stop, :, : batch.ids_BLQ.shape[1]] = batch.ids_BLQ.transpose(0, 2, 1)
        start = stop
    lengths = [batch.lengths_B for batch in batches if batch.lengths_B is not None]
    shapes = [batch.shapes_BD for batch in batches if batch.shapes_BD is not None]
    return TokenBatch(
        ids_BQL.transpose(0, 2, 1),
        np.concatenate(lengths) if lengths else None,
        np.concatenate(shapes) if shapes else None,
    )
