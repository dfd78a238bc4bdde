"""The result of a curve: a row for each side and budget, with intervals over measured images and seeds.

Shapes: S seeds, N measured images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tokenshards.pipeline.storage.store import display_url
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.comparison.paired import Floats, resampled, unpacked
from tokenshards.stem_adaptors.comparison.result import Score, score_of
from tokenshards.stem_adaptors.comparison.timed_run import Run
from tokenshards.stem_adaptors.curves.curve_config import TOKENS, CurveRequest
from tokenshards.stem_adaptors.data.selection import Ints

__all__ = ["Curve", "CurveRow", "Point"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A side at a budget, before its trainings."""

    side: str
    budget: int
    images: int = 0
    bytes_per_image: float = 0.0
    detail: str = ""
    """What files are stored, in words."""
    absent: str = ""
    """Why there is nothing to train; empty where there is."""
    runs: tuple[Run, ...] = ()
    """In the order of their seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveRow:
    """A side at a budget, and its results."""

    side: str
    """`tokens`, `fewer images` or `jpeg`."""
    budget: int
    images: int
    """That were learned from."""
    bytes_per_image: float
    detail: str = ""
    """What files are stored, in words."""
    absent: str = ""
    """Why the side could not be made; empty where it was."""
    top1: Score | None = None
    """Over measured images and seeds."""
    per_seed: tuple[float, ...] = ()
    epochs: float | None = None
    """Mean passes over the images in the time of a training."""
    over_images: Score | None = None
    """Top-1 of tokens less that of the better image side of this budget."""
    best_images: str = ""

    @property
    def stored_bytes(self) -> float:
        """What the images take together."""
        return self.images * self.bytes_per_image


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Rows by budget, the smallest first, tokens before images.

    >>> found = tokenshards.curve("photos.tokens", val="photos.tokens", bytes="9kB,18kB", out="curve", minutes=0.02, seeds=1)
    >>> [(row.side, row.budget) for row in found.rows], len(found.rows[0].per_seed)
    ([('tokens', 9000), ('tokens', 18000)], 1)
    """

    out: str
    minutes: float
    seeds: int
    choice: str
    measured: int
    """Labelled images that every side is measured on."""
    tokenizer_bytes: int
    """Of codebook, weights and model of the codec, which are in no budget."""
    rows: tuple[CurveRow, ...]

    def __repr__(self) -> str:
        budgets = sorted({row.budget for row in self.rows})
        return short_repr(self, out=self.out, minutes=self.minutes, seeds=self.seeds, budgets=budgets, rows=len(self.rows))

    def to_json(self) -> dict[str, Any]:
        """Return what `curve --json` prints."""
        return asdict(self)

    @classmethod
    def of(
        cls,
        request: CurveRequest,
        points: Sequence[Point],
        results: Mapping[Run, dict[str, Any]],
        places: Mapping[str, Ints],
        tokenizer_bytes: int,
    ) -> Curve:
        """Put the results together. `places`: for the side of a run, which of its measured images count, the same on every side."""
        right = {point: _right(point, results, places) for point in points if point.runs}
        means = resampled({str(number): right_SN for number, right_SN in enumerate(right.values())})
        means_of = dict(zip(right, means.values(), strict=True))
        rows = []
        for point in points:
            found = [results[run] for run in point.runs]
            others = [one for one in right if one.budget == point.budget and one.side != TOKENS]
            over, best = None, ""
            if point.side == TOKENS and others:
                other = max(others, key=lambda one: float(right[one].mean()))
                best = other.side
                over = score_of(float(right[point].mean() - right[other].mean()), means_of[point] - means_of[other])
            rows.append(
                CurveRow(
                    side=point.side,
                    budget=point.budget,
                    images=point.images,
                    bytes_per_image=round(point.bytes_per_image, 2),
                    detail=point.detail,
                    absent=point.absent,
                    top1=score_of(float(right[point].mean()), means_of[point]) if found else None,
                    per_seed=tuple(round(float(value), 5) for value in right[point].mean(axis=1)) if found else (),
                    epochs=round(float(np.mean([one["epochs"] for one in found])), 1) if found else None,
                    over_images=over,
                    best_images=best,
                )
            )
        return cls(
            out=display_url(request.out_url),
            minutes=request.minutes,
            seeds=request.seeds,
            choice=request.choice,
            measured=next(iter(right.values())).shape[1],
            tokenizer_bytes=tokenizer_bytes,
            rows=tuple(rows),
        )


def _right(point: Point, results: Mapping[Run, dict[str, Any]], places: Mapping[str, Ints]) -> Floats:
    """Return float64 [S, N], 1 where an image was classified correctly."""
    found = [results[run] for run in point.runs]
    return unpacked([one["right"] for one in found], found[0]["images"])[:, places[point.runs[0].side]]
