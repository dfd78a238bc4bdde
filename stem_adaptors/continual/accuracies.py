"""The accuracy matrix of a chain, and the three figures that are made of it.

a[t, j] is the accuracy, after step t, on the images to measure on of the classes that came in step j; of T steps, counted from 1:

- accuracy after step t: over all images of the classes seen so far, so the mean of a[t, 1..t] weighted by their images.
- average incremental accuracy: the mean of these over all steps, the first one too (Rebuffi et al. 2017, iCaRL, section 4).
- forgetting: the mean over j < T of f_j = max over l < T of a[l, j], less a[T, j] (Chaudhry et al. 2018, "Riemannian Walk for Incremental
  Learning", section 3). Before step j the classes are unknown, so that l begins at j.

Shapes: T steps, J = T groups, N measured images, R resamples.
"""

from __future__ import annotations

import numpy as np

from tokenshards.stem_adaptors.comparison.paired import Floats
from tokenshards.stem_adaptors.data.selection import Ints

__all__ = ["figures_of", "hits_of", "matrix_of"]


def figures_of(hits_RTJ: Floats, images_RJ: Floats) -> Floats:
    """Return figures [R, T + 2]: accuracy after each step, average incremental accuracy, forgetting.

    `hits_RTJ`, `images_RJ`: right answers after each step, and images, by group.
    A group without an image in a resample counts nowhere in it.
    """
    seen_TJ = np.tri(hits_RTJ.shape[1])
    counts_RT = images_RJ @ seen_TJ.T
    steps_RT = (hits_RTJ * seen_TJ).sum(axis=2) / np.maximum(counts_RT, 1)
    known_RT = counts_RT > 0
    incremental_R = (steps_RT * known_RT).sum(axis=1) / np.maximum(known_RT.sum(axis=1), 1)
    matrix_RTJ = matrix_of(hits_RTJ, images_RJ)[:, :, :-1]  # nothing of the last group can be forgotten
    there_RJ = images_RJ[:, :-1] > 0
    best_RJ = np.where(np.isnan(matrix_RTJ[:, :-1]), -np.inf, matrix_RTJ[:, :-1]).max(axis=1)
    lost_RJ = np.where(there_RJ, best_RJ - matrix_RTJ[:, -1], 0.0)
    forgetting_R = lost_RJ.sum(axis=1) / np.maximum(there_RJ.sum(axis=1), 1)
    return np.concatenate([steps_RT, incremental_R[:, None], forgetting_R[:, None]], axis=1)


def matrix_of(hits_RTJ: Floats, images_RJ: Floats) -> Floats:
    """Return the accuracy matrices [R, T, J]; NaN for groups that have not come, and for those without an image."""
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix_RTJ: Floats = np.where(np.tri(hits_RTJ.shape[1]) > 0, hits_RTJ / images_RJ[:, None], np.nan)
    return matrix_RTJ


def hits_of(right_TN: Floats, group_N: Ints, times_RN: Floats) -> tuple[Floats, Floats]:
    """Return right answers [R, T, J] and images [R, J] by group, where a resample has image n `times_RN` times.

    A group of -1 is none of them.
    """
    steps = len(right_TN)
    of_group_NJ = (group_N[:, None] == np.arange(steps)).astype(np.float64)
    columns_NX = (right_TN.T[:, :, None] * of_group_NJ[:, None]).reshape(len(group_N), steps * steps)
    return (times_RN @ columns_NX).reshape(-1, steps, steps), times_RN @ of_group_NJ
