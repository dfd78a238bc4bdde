"""A linear way back from ids to pixels: the patch of a site is a sum of one row for each code of the 3 x 3 sites around it.

The rows are those of least squared error on the fitting images, with a ridge. What the ids keep is what an image shows, not its pixels, so
the images are blurred averages of what such codes stood for.

Shapes: B images, L = h x w sites, Q levels, K codes of all levels together, D = site * site * 3 values of the patch of a site.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.tokenizers.layered.features import Floats

__all__ = ["decoded_patches", "fitted_rows"]

AROUND = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
RIDGE = 2.0
"""Counts as so many patches that are equal to the mean patch."""
TOGETHER = 65_536


def _columns(ids_BLQ: npt.NDArray[np.integer], vocabulary: Sequence[int], grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return int64 [B, L, 9 * Q], the rows that are added up for a site; 9 * K, which is a row of zeros, for places outside."""
    starts_Q = np.concatenate([[0], np.cumsum(vocabulary)[:-1]])
    total = sum(vocabulary)
    ids_BhwQ = (ids_BLQ.astype(np.int64) + starts_Q).reshape(len(ids_BLQ), *grid, len(vocabulary))
    wide = np.pad(ids_BhwQ, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
    found = []
    for place, (row, column) in enumerate(AROUND):
        there = wide[:, 1 + row : 1 + row + grid[0], 1 + column : 1 + column + grid[1]]
        found.append(np.where(there < 0, len(AROUND) * total, there + place * total))
    return np.concatenate(found, axis=3).reshape(len(ids_BLQ), grid[0] * grid[1], -1)


def decoded_patches(ids_BLQ: npt.NDArray[np.integer], rows: Floats, vocabulary: Sequence[int], grid: tuple[int, int]) -> Floats:
    """Return float32 [B, L, D], colours from 0 to 255. `rows`: [9 * K + 1, D], the last one the mean patch, which is added once."""
    padded = np.concatenate([rows[:-1], np.zeros((1, rows.shape[1]), np.float32)])
    found: Floats = padded[_columns(ids_BLQ, vocabulary, grid)].sum(axis=2, dtype=np.float32) + rows[-1]
    return found


def fitted_rows(
    ids_BLQ: npt.NDArray[np.integer], patches_BLD: npt.NDArray[np.uint8], vocabulary: Sequence[int], grid: tuple[int, int]
) -> Floats:
    """Return float32 [9 * K + 1, D] for `decoded_patches`, from the ids and patches of the fitting images."""
    columns_NF = _columns(ids_BLQ, vocabulary, grid).reshape(-1, len(AROUND) * len(vocabulary))
    patches_ND = patches_BLD.reshape(len(columns_NF), -1)
    mean_D, size = patches_ND.mean(axis=0, dtype=np.float64), len(AROUND) * sum(vocabulary) + 1
    products = np.zeros((size, size), np.float64)
    targets = np.zeros((size, patches_ND.shape[1]))
    for first_N in columns_NF.T:
        for second_N in columns_NF.T:
            products += np.bincount(first_N * size + second_N, minlength=size * size).reshape(size, size)
        order_N = np.argsort(first_N, kind="stable")
        for column in range(0, len(order_N), TOGETHER):
            rows = order_N[column : column + TOGETHER]
            ids, starts = np.unique(first_N[rows], return_index=True)
            targets[ids] += np.add.reduceat(patches_ND[rows] - mean_D, starts, axis=0)
    # Places outside of the image add nothing: their row is left out.
    found = np.linalg.solve(products[:-1, :-1] + RIDGE * np.eye(size - 1), targets[:-1])
    return np.concatenate([found, mean_D[None]]).astype(np.float32)
