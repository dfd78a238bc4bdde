"""Herding: images whose mean stays near the mean of their class, whatever number of them is kept.

Welling 2009, "Herding Dynamical Weights to Learn"; as in iCaRL (Rebuffi et al. 2017, algorithm 4).

Shapes: N images of a class, D features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokenshards.stem_adaptors.comparison.paired import Floats
from tokenshards.stem_adaptors.data.selection import Ints

__all__ = ["herded", "normalised"]


def normalised(features_ND: npt.NDArray[np.float32]) -> Floats:
    """Return float64 features of length 1; zeros stay zeros."""
    wide_ND = features_ND.astype(np.float64)
    unit_ND: Floats = wide_ND / np.maximum(np.linalg.norm(wide_ND, axis=1, keepdims=True), 1e-12)
    return unit_ND


def herded(features_ND: Floats, count: int) -> Ints:
    """Return the places of the first `count` images, each once, best first.

    Image k is the one that brings the mean of the first k nearest to the mean m of all: with the sum s of the images before, it has the
    least |m - (s + f) / k|^2, which is least where |f|^2 / k - 2 f (m - s / k) is. Of equal images the first one is taken.
    """
    squares_N, mean_D, sum_D = np.square(features_ND).sum(axis=1), features_ND.mean(axis=0), np.zeros(features_ND.shape[1])
    taken_N = np.zeros(len(features_ND), bool)
    places = np.zeros(min(count, len(features_ND)), np.int64)
    for number in range(len(places)):
        k = number + 1
        away_N = squares_N / k - 2 * features_ND @ (mean_D - sum_D / k)
        away_N[taken_N] = np.inf
        places[number] = place = int(away_N.argmin())
        taken_N[place] = True
        sum_D += features_ND[place]
    return places
