"""k-means in float32 with weights and pinned centres. Equal input gives equal output.

Shapes: N points, K centres (codes), D values of a point.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.tokenizers.nearest_code import nearest_rows

__all__ = ["cover", "kmeans"]

Floats = npt.NDArray[np.float32]

SEED_POINTS = 16_384
"""Fewest points that seeding uses; using all points costs more than it gains."""


def cover(points_ND: Floats, count: int, radius: float) -> npt.NDArray[np.intp]:
    """Return indices of at most `count` points such that every point lies within `radius` (root mean square) of one, if so few suffice.

    Greedy: the first point, then always the point farthest from those taken.
    """
    taken: list[int] = []
    distance_N = np.full(len(points_ND), np.inf)
    while len(taken) < count and len(points_ND) and distance_N.max() > radius**2 * points_ND.shape[1]:
        taken.append(int(distance_N.argmax()))
        np.minimum(distance_N, _squared_distance(points_ND, points_ND[taken[-1]]), out=distance_N)
    return np.array(taken, dtype=np.intp)


def kmeans(
    points_ND: Floats, weights_N: npt.NDArray[np.float64], codes: int, *, pinned_PD: Floats, iterations: int, rng: np.random.Generator
) -> Floats:
    """Return at most `codes` centres [K, D], at least one: `pinned_PD` unchanged, the other centres by weighted Lloyd steps.

    There are fewer centres where there are fewer distinct points. A centre that loses all its points moves to the point that is served
    worst.
    """
    seeds_SD = _seeds(points_ND, weights_N, codes - len(pinned_PD), pinned_PD, rng)
    centres_KD: Floats = np.concatenate([pinned_PD, seeds_SD])
    columns_DN = np.ascontiguousarray(points_ND.T)  # one value of all points lies together: sums are several times faster
    previous_N = None
    for _ in range(iterations):
        nearest_N = nearest_rows(points_ND, centres_KD)
        if previous_N is not None and np.array_equal(nearest_N, previous_N):
            break
        previous_N = nearest_N
        mass_K = np.bincount(nearest_N, weights=weights_N, minlength=len(centres_KD))
        sums_DK = np.stack([np.bincount(nearest_N, weights=column_N * weights_N, minlength=len(centres_KD)) for column_N in columns_DN])
        free_K = np.arange(len(centres_KD)) >= len(pinned_PD)
        dead, moves_K = np.flatnonzero(free_K & (mass_K == 0)), free_K & (mass_K > 0)
        if len(dead):
            error_N = weights_N * np.square(points_ND - centres_KD[nearest_N]).sum(axis=1)
            centres_KD[dead] = points_ND[np.argsort(-error_N, kind="stable")[: len(dead)]]
        centres_KD[moves_K] = (sums_DK[:, moves_K] / mass_K[moves_K]).T
    return centres_KD


def _seeds(points_ND: Floats, weights_N: npt.NDArray[np.float64], count: int, pinned_PD: Floats, rng: np.random.Generator) -> Floats:
    """Draw starting centres as k-means++ does: by weight times squared distance to the existing centres."""
    if len(points_ND) > (limit := max(SEED_POINTS, 16 * count)):
        some = np.sort(rng.choice(len(points_ND), limit, replace=False))
        points_ND, weights_N = points_ND[some], weights_N[some]
    distance_N = np.ones(len(points_ND))
    if len(pinned_PD):
        distance_N = np.min([_squared_distance(points_ND, row_D) for row_D in pinned_PD], axis=0)
    taken: list[int] = []
    while len(taken) < count:
        odds_N = np.cumsum(weights_N * distance_N)
        if odds_N[-1] <= 0:
            break
        pick = min(int(np.searchsorted(odds_N, rng.random() * odds_N[-1], side="right")), len(points_ND) - 1)
        seen_N = _squared_distance(points_ND, points_ND[pick])
        distance_N = np.minimum(distance_N, seen_N) if taken or len(pinned_PD) else seen_N
        taken.append(pick)
    return points_ND[taken]


def _squared_distance(points_ND: Floats, row_D: Floats) -> npt.NDArray[np.float64]:
    apart_ND = points_ND - row_D
    squared_N: npt.NDArray[np.float64] = np.einsum("nd,nd->n", apart_ND, apart_ND).astype(np.float64)
    return squared_N
