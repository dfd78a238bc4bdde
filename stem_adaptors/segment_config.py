"""Configuration of the training on masks. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from tokenshards.pipeline.errors import require
from tokenshards.stem_adaptors.field_types import check_types

__all__ = ["SEGMENT_HEADS", "SegmentConfig"]

SEGMENT_HEADS = ("linear", "upernet")


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentConfig:
    """The head that gives each pixel a class.

    >>> tokenshards.SegmentConfig(head="upernet").channels
    64
    """

    head: str = "linear"
    """`linear`: one linear layer on the tokens of the last block; `upernet`: a pyramid of four blocks (UPerNet)."""
    channels: int = 64
    """Channels of the pyramid."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.head in SEGMENT_HEADS, "segment.head", self.head, " or ".join(SEGMENT_HEADS))
        require(self.channels >= 8 and self.channels % 8 == 0, "segment.channels", self.channels, "a multiple of 8, at least 8")
