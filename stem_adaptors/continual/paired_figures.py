"""Results of chains become rows: figures of every side with intervals, and differences. All sides share the drawn images and seeds.

Shapes: S seeds, T steps, J = T groups, N measured images, R resamples, F = T + 2 figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenshards.stem_adaptors.comparison.paired import RESAMPLES, Floats, drawn, unpacked
from tokenshards.stem_adaptors.comparison.result import score_of
from tokenshards.stem_adaptors.continual.accuracies import figures_of, hits_of, matrix_of
from tokenshards.stem_adaptors.continual.chain import Chain
from tokenshards.stem_adaptors.continual.result import ContinualRow, Figures, Line
from tokenshards.stem_adaptors.curves.curve_config import TOKENS
from tokenshards.stem_adaptors.data.selection import Ints

__all__ = ["resampled_figures", "rows_of_lines"]

TOGETHER = 250
"""Resamples that are computed at once."""


def rows_of_lines(
    lines: Sequence[Line], results: Mapping[Chain, dict[str, Any]], places: Mapping[str, Ints], groups_SN: Ints
) -> tuple[ContinualRow, ...]:
    """Return a row for each line. `places`: which measured images of a side count, in the same order on every side.

    `groups_SN`: the step in which the class of each measured image comes, for each seed; -1 for classes that never come.
    """
    right = {line: _right(line, results, places) for line in lines if line.chains}
    drawn_RF, whole_RN = resampled_figures(right, groups_SN), np.ones((1, groups_SN.shape[1]))
    counts = {line: [hits_of(*one, whole_RN) for one in zip(right_STN, groups_SN, strict=True)] for line, right_STN in right.items()}
    rows = []
    for line in lines:
        if not line.chains:
            rows.append(ContinualRow(side=line.side, budget=line.budget, bytes_per_image=line.bytes_per_image, absent=line.absent))
            continue
        found, mean_F, ahead = [results[chain]["steps"] for chain in line.chains], _mean(counts[line]), None
        tokens = next((one for one in right if one.side == TOKENS and one.budget == line.budget), None)
        if tokens is not None and line.budget is not None and line.side != TOKENS:
            ahead = _figures(_mean(counts[tokens]) - mean_F, drawn_RF[tokens] - drawn_RF[line])
        scores = tuple(score_of(float(value), drawn_R) for value, drawn_R in zip(mean_F, drawn_RF[line].T, strict=True))
        rows.append(
            ContinualRow(
                side=line.side,
                budget=line.budget,
                bytes_per_image=round(line.bytes_per_image, 2),
                detail=line.detail,
                figures=_figures(mean_F, drawn_RF[line]),
                steps=scores[:-2],
                tokens_ahead=ahead,
                memory=tuple(tuple(step["memory"] for step in steps) for steps in found),
                matrices=tuple(_plain(matrix_of(*one)[0]) for one in counts[line]),
                epochs=round(float(np.mean([step["epochs"] for steps in found for step in steps])), 1),
            )
        )
    return tuple(rows)


def resampled_figures(right: Mapping[Line, Floats], groups_SN: Ints, resamples: int = RESAMPLES) -> dict[Line, Floats]:
    """Return the figures [R, F] of each line, whose right answers are [S, T, N], over images and seeds drawn with replacement."""
    seeds, images = groups_SN.shape
    found: dict[Line, list[Floats]] = {line: [] for line in right}
    draws = list(drawn(seeds, images, resamples))
    for start in range(0, resamples, TOGETHER):
        part = draws[start : start + TOGETHER]
        times_RN = np.stack([np.bincount(images_N, minlength=images) for images_N, _ in part]).astype(np.float64)
        shares_RS = np.stack([np.bincount(seeds_S, minlength=seeds) for _, seeds_S in part]) / seeds
        for line, right_STN in right.items():
            each = [
                shares_RS[:, seed, None] * figures_of(*hits_of(right_STN[seed], groups_SN[seed], times_RN))
                for seed in range(seeds)
            ]  # fmt: skip
            found[line].append(np.sum(each, axis=0))
    return {line: np.concatenate(parts) for line, parts in found.items()}


def _mean(counts: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Return the figures [F], the mean over the seeds."""
    mean_F: Floats = np.mean([figures_of(*one)[0] for one in counts], axis=0)
    return mean_F


def _figures(mean_F: Floats, drawn_RF: Floats) -> Figures:
    accuracy, incremental, forgetting = (score_of(float(mean_F[place]), drawn_RF[:, place]) for place in (-3, -2, -1))
    return Figures(accuracy=accuracy, incremental=incremental, forgetting=forgetting)


def _right(line: Line, results: Mapping[Chain, dict[str, Any]], places: Mapping[str, Ints]) -> Floats:
    """Return float64 [S, T, N], 1 where an image was classified correctly after a step."""
    found = []
    for chain in line.chains:
        steps = results[chain]["steps"]
        found.append(unpacked([step["right"] for step in steps], steps[0]["images"])[:, places[line.place]])
    return np.stack(found)


def _plain(matrix_TJ: Floats) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(None if np.isnan(value) else round(float(value), 5) for value in row_J) for row_J in matrix_TJ)
