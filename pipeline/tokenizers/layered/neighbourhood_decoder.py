"""A linear way back from ids to pixels: the patch of a site is a sum of one row for each code of the 3 x 3 sites around it.

The rows are those of least squared error on the fitting images, with a ridge. What the ids keep is what an image shows, not its pixels, so
the images are blurred averages of what such codes stood for.

Shapes: B images, L = h x w sites, Q levels, K codes of all levels together, D = site * site * 3 values of the patch of a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.tokenizers.layered.features import Floats

__all__ = ["NeighbourhoodDecoder", "fitted_decoder", "halves"]

AROUND = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
RIDGE = 2.0
"""Counts as so many patches that are equal to the mean patch."""
RANK = 24
"""Numbers that a row keeps of a patch: what such ids know of a patch is blurred."""
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


@dataclass(frozen=True, eq=False)
class NeighbourhoodDecoder:
    """The way back. A row of F = 9 * K holds R numbers, which `basis_RD` turns into a patch; `mean_D`, the mean patch, is added once."""

    rows_FR: Floats
    basis_RD: Floats
    mean_D: Floats

    def __call__(self, ids_BLQ: npt.NDArray[np.integer], vocabulary: Sequence[int], grid: tuple[int, int]) -> Floats:
        """Return float32 [B, L, D], colours from 0 to 255."""
        padded = np.concatenate([self.rows_FR, np.zeros((1, self.rows_FR.shape[1]), np.float32)])
        found: Floats = padded[_columns(ids_BLQ, vocabulary, grid)].sum(axis=2, dtype=np.float32) @ self.basis_RD + self.mean_D
        return found


def fitted_decoder(
    ids_BLQ: npt.NDArray[np.integer], patches_BLD: npt.NDArray[np.uint8], vocabulary: Sequence[int], grid: tuple[int, int]
) -> NeighbourhoodDecoder:
    """Return the decoder of least squared error on the ids and patches of the fitting images, among those of rank RANK.

    Of the full solution W, with X'X the products of the columns, the best basis is that of the largest eigenvectors of W' X'X W
    (reduced-rank regression; Izenman 1975, "Reduced-rank regression for the multivariate linear model", section 2).
    """
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
    ridged_FF = products[:-1, :-1] + RIDGE * np.eye(size - 1)
    solution_FD = np.linalg.solve(ridged_FF, targets[:-1])
    _, vectors_DD = np.linalg.eigh(solution_FD.T @ targets[:-1])  # W' (X'X + ridge) W, ascending
    basis_DR = vectors_DD[:, ::-1][:, :RANK]
    basis_DR = basis_DR * np.sign(basis_DR[np.abs(basis_DR).argmax(axis=0), np.arange(basis_DR.shape[1])])  # the sign is arbitrary
    return NeighbourhoodDecoder(*(halves(values) for values in (solution_FD @ basis_DR, basis_DR.T, mean_D)))


def halves(values: npt.NDArray[np.floating]) -> Floats:
    """Return the values rounded to float16, in which they are stored, as float32."""
    return values.astype(np.float16).astype(np.float32)
