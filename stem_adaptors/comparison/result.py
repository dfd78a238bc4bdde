"""The result of a comparison: a row for each side, with intervals over measured images and seeds.

Shapes: S seeds, N measured images, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tokenshards.pipeline.storage.store import display_url
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.comparison.compare_config import CompareRequest, Side
from tokenshards.stem_adaptors.comparison.paired import interval, resampled, unpacked
from tokenshards.stem_adaptors.comparison.timed_run import Run

__all__ = ["Comparison", "Row", "Score"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A share, 0 to 1, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A side and its results."""

    side: Side
    probe: float | None
    """Top-1 of the linear probe."""
    top1: Score | None = None
    """Of the trained classifiers, over measured images and seeds."""
    per_seed: tuple[float, ...] = ()
    epochs: float | None = None
    """Mean passes over the images in the time of a training."""
    over_files: Score | None = None
    """Top-1 of tokens less that of the better file of as many bytes."""
    best_file: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows in the order of the sides, tokenizers first.

    >>> found = tokenshards.compare("patch-kmeans", images="photos", val="photos", out="comparison", minutes=0, against=["pixels"])
    >>> [row.side.name for row in found.rows], found.rows[0].side.facts["ids"]
    (['patch-kmeans', 'pixels'], 512.0)
    """

    out: str
    minutes: float
    seeds: int
    stored_images: int
    measured: int
    """Labelled images of --val."""
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        return short_repr(self, out=self.out, minutes=self.minutes, seeds=self.seeds, rows=[row.side.name for row in self.rows])

    def to_json(self) -> dict[str, Any]:
        """Return what `compare --json` prints."""
        return asdict(self)

    @classmethod
    def of(
        cls, request: CompareRequest, sides: Sequence[Side], probes: Mapping[str, dict[str, Any]], results: Mapping[Run, dict[str, Any]]
    ) -> Comparison:
        """Put the results together. Intervals are paired: every side gets the same drawn images and seeds."""
        by_side: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
        names = {side.place: side.name for side in sides if side.place}
        for run in sorted(results, key=lambda run: run.seed):
            by_side[names[run.side]].append(results[run])
        right = {name: unpacked([one["right"] for one in found], found[0]["images"]) for name, found in by_side.items() if found}
        means = resampled(right) if right else {}
        rows = []
        for side in sides:
            found, files = by_side[side.name], _files_for(side, sides, right)
            over, best = None, ""
            if side.kind == "tokens" and files and side.name in right:
                best = max(files, key=lambda name: right[name].mean())
                over = _score(float(right[side.name].mean() - right[best].mean()), means[side.name] - means[best])
            rows.append(
                Row(
                    side=side,
                    probe=probes[side.name]["top1"] if side.name in probes else None,
                    top1=_score(float(right[side.name].mean()), means[side.name]) if found else None,
                    per_seed=tuple(one["top1"] for one in found),
                    epochs=round(float(np.mean([one["epochs"] for one in found])), 1) if found else None,
                    over_files=over,
                    best_file=best,
                )
            )
        measured = next((probe["images"] for probe in probes.values()), 0)
        return cls(
            out=display_url(request.out_url),
            minutes=request.minutes,
            seeds=request.seeds,
            stored_images=request.stored_images,
            measured=measured,
            rows=tuple(rows),
        )


def _files_for(side: Side, sides: Sequence[Side], trained: Mapping[str, Any]) -> list[str]:
    """Return the names of the files whose budget is that of the side: the smallest budget that is not below its bytes."""
    budgets = sorted({other.budget for other in sides if other.budget is not None and other.budget >= (side.stored_bytes or 0)})
    return [other.name for other in sides if budgets and other.budget == budgets[0] and other.name in trained]


def _score(value: float, draws_R: Any) -> Score:
    low, high = interval(draws_R)
    return Score(value=round(value, 4), low=low, high=high)
