"""The result of a continual learning: a row for each side and budget, with intervals over measured images and seeds.

Shapes: S seeds, T steps, N measured images, R resamples.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.comparison.result import Score
from tokenshards.stem_adaptors.continual.chain import Chain

__all__ = ["Continual", "ContinualRow", "Figures", "Line"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A side at a budget, before its trainings."""

    side: str
    budget: int | None
    """Bytes of the memory; None where the side has none, or keeps all."""
    bytes_per_image: float
    detail: str = ""
    """What files are stored, in words."""
    absent: str = ""
    """Why there is nothing to train; empty where there is."""
    place: str = ""
    """Of the images that it is measured on."""
    chains: tuple[Chain, ...] = ()
    """In the order of their seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Of a side, or differences of two sides; `stem_adaptors/continual/accuracies.py` has the formulas."""

    accuracy: Score
    """After the last step, over all measured images."""
    incremental: Score
    """Average incremental accuracy."""
    forgetting: Score


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinualRow:
    """A side at a budget, and its results."""

    side: str
    """`no memory`, `tokens`, `jpeg`, `files` or `all kept`."""
    budget: int | None
    """Bytes of the memory; None where the side has none, or keeps all."""
    bytes_per_image: float
    detail: str = ""
    """What files are stored, in words."""
    absent: str = ""
    """Why the side could not be made; empty where it was."""
    figures: Figures | None = None
    steps: tuple[Score, ...] = ()
    """Accuracy after each step, over the images of all classes seen so far."""
    tokens_ahead: Figures | None = None
    """Of a side of images: figures of tokens at as many bytes, less its own. Of forgetting, less is better."""
    memory: tuple[tuple[int, ...], ...] = ()
    """Images in the memory at each step, for each seed."""
    matrices: tuple[tuple[tuple[float | None, ...], ...], ...] = ()
    """For each seed: accuracy after each step on each group. None for groups that have not come, or have no image to measure on."""
    epochs: float | None = None
    """Mean passes over the images of a step in its time."""

    @property
    def images(self) -> float:
        """In the memory at the last step, mean over the seeds."""
        return sum(counts[-1] for counts in self.memory) / len(self.memory)

    @property
    def matrix(self) -> tuple[tuple[float | None, ...], ...]:
        """The mean over the seeds, whose groups are other classes."""
        steps = len(self.matrices[0])
        return tuple(tuple(_mean([one[step][group] for one in self.matrices]) for group in range(steps)) for step in range(steps))


@dataclass(frozen=True, kw_only=True)
class Continual:
    """Rows by budget, the smallest first, tokens before images, between the side without a memory and that with all images.

    >>> found = tokenshards.continual("photos.tokens", val="photos.tokens", replay="9kB", steps=3, out="continual", minutes=0.01, seeds=1)
    >>> [(row.side, row.budget) for row in found.rows]
    [('no memory', None), ('tokens', 9000), ('all kept', None)]
    """

    out: str
    minutes: float
    seeds: int
    choice: str
    measured: int
    """Labelled images that every side is measured on."""
    groups: tuple[tuple[tuple[str, ...], ...], ...]
    """For each seed: the classes of each step."""
    tokenizer_bytes: int
    """Of codebook, weights and model of the codec, which are in no budget."""
    rows: tuple[ContinualRow, ...]

    def __repr__(self) -> str:
        rows = [row.side for row in self.rows]
        return short_repr(self, out=self.out, minutes=self.minutes, seeds=self.seeds, steps=self.steps, rows=rows)

    @property
    def steps(self) -> int:
        """Groups of classes."""
        return len(self.groups[0])

    def to_json(self) -> dict[str, Any]:
        """Return what `continual --json` prints."""
        return asdict(self)


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
