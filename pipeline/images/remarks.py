"""What a person should know about images that were taken all the same; each commit counts them, and the end of a run says them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum

from tokenshards.pipeline.words import counted

__all__ = ["REMARK_NAMES", "Remark", "remark_notes"]


class Remark(StrEnum):
    """A remark of the decoder on one image."""

    TRUNCATED = "truncated"
    DARK_16_BIT = "dark_16_bit"
    """Only the high byte of its samples was taken, and the image uses few of its 16 bits."""


REMARK_NAMES = {Remark.TRUNCATED: "truncated but taken", Remark.DARK_16_BIT: "dark 16-bit images"}
"""Remark -> its name in a table."""


def remark_notes(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence for each remark, by the numbers of its images."""
    if count := counts.get(Remark.TRUNCATED, 0):
        taken = counted(count, "image ends too early and was", "images end too early and were")
        yield f"{taken} taken as far as the data go (--accept-truncated)"
    if count := counts.get(Remark.DARK_16_BIT, 0):
        yield (
            f"{counted(count, '16-bit image uses', '16-bit images use')} at most 14 of 16 bits, so the high bytes are dark "
            "(--sixteen-bit high-byte); a new output with --sixteen-bit scale takes all as bright as they are meant"
        )
