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
from tokenshards.stem_adaptors.comparison.paired import Floats, interval, resampled, unpacked
from tokenshards.stem_adaptors.comparison.timed_run import Run

__all__ = ["Comparison", "Row", "Score", "score_of"]


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
        """Put the results together; `probes` are those of each place. Intervals are paired: every side gets the same images and seeds."""
        trained: dict[str, list[dict[str, Any]]] = {}
        for run in sorted(results, key=lambda run: run.seed):
            trained.setdefault(run.side, []).append(results[run])
        right = {place: unpacked([one["right"] for one in found], found[0]["images"]) for place, found in trained.items()}
        means = resampled(right) if right else {}
        rows = []
        for side in sides:
            place, found = side.place, trained.get(side.place, [])
            files = [file for file in _files_for(side, sides) if file.place in right]
            over, best = None, ""
            if side.kind == "tokens" and found and files:
                file = max(files, key=lambda file: float(right[file.place].mean()))
                over, best = score_of(float(right[place].mean() - right[file.place].mean()), means[place] - means[file.place]), file.name
            rows.append(
                Row(
                    side=side,
                    probe=probes[place]["top1"] if place in probes else None,
                    top1=score_of(float(right[place].mean()), means[place]) if found else None,
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


def _files_for(side: Side, sides: Sequence[Side]) -> list[Side]:
    """Return the files whose budget is that of the side: the smallest budget that is not below its bytes."""
    budgets = sorted({other.budget for other in sides if other.budget is not None and other.budget >= (side.stored_bytes or 0)})
    return [other for other in sides if budgets and other.budget == budgets[0]]


def score_of(value: float, draws_R: Floats) -> Score:
    """Return a value with the interval of its resamples."""
    low, high = interval(draws_R)
    return Score(value=round(value, 4), low=low, high=high)
