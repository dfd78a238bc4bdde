"""What a person should know of tars that cannot be read to their end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenshards.pipeline.words import counted

__all__ = ["CUT", "damage_notes", "note_on_cut_archives"]

CUT = "was cut"
"""Words in the detail of every failure of an archive that ends too early. Nothing says how much lay behind its end."""
SHOWN = 3


def damage_notes(damages: Sequence[str]) -> Iterator[str]:
    """Yield a note for each of the first damages, and one on what is lost where nobody can count it."""
    yield from (f"damaged: {damage}" for damage in damages[:SHOWN])
    if len(damages) > SHOWN:
        yield f"damaged: {len(damages) - SHOWN} more"
    if cut := sum(CUT in damage for damage in damages):
        yield note_on_cut_archives(cut)


def note_on_cut_archives(count: int, example: str = "") -> str:
    """Return what is lost with archives that were cut, and what to do."""
    archives = counted(count, "archive was cut", "archives were cut")
    such = f", such as {example}" if example else ""
    them = "it" if count == 1 else "them"
    return f"{archives}{such}: an unknown number of images behind the cut is lost, and no count holds them; get a whole copy of {them}"
