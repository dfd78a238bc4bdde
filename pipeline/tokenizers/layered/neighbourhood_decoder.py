"""A linear way back from ids to pixels: the patch of a site is a linear map of the code vectors of the 3 x 3 sites around it.

The map is that of least squared error on the fitting images, with a ridge. What the ids keep is what an image shows, not its pixels, so the
images are blurred averages of what such codes stood for.

Shapes: B images, L = h x w sites, P values of a code vector, F = 9 * P, R rank, D = site * site * 3 values of the patch of a site.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.tokenizers.layered.features import Floats

__all__ = ["AROUND", "DecoderFit", "NeighbourhoodDecoder", "around", "halves"]

AROUND = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
RIDGE = 1e-3
"""Of the mean square of a column, counted for each patch."""
RANK = 24
"""Numbers between code vectors and patch: what such ids know of a patch is blurred."""


def around(vectors_BLP: Floats, grid: tuple[int, int]) -> Floats:
    """Return float32 [B, L, F], the vectors of the sites around each site; zeros for places outside of the image."""
    batch, sites, width = vectors_BLP.shape
    wide = np.pad(vectors_BLP.reshape(batch, *grid, width), ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = [wide[:, 1 + row : 1 + row + grid[0], 1 + column : 1 + column + grid[1]] for row, column in AROUND]
    return np.concatenate(found, axis=3).reshape(batch, sites, len(AROUND) * width)


@dataclass(frozen=True, eq=False)
class NeighbourhoodDecoder:
    """The way back. `weights_FR` makes R numbers of the vectors around a site, `basis_RD` a patch of these; `mean_D` is added."""

    weights_FR: Floats
    basis_RD: Floats
    mean_D: Floats

    def __call__(self, vectors_BLP: Floats, grid: tuple[int, int]) -> Floats:
        """Return float32 [B, L, D], colours from 0 to 255, for the sums of the code vectors of each site."""
        return np.asarray(around(vectors_BLP, grid) @ self.weights_FR @ self.basis_RD + self.mean_D, np.float32)


class DecoderFit:
    """Sums over images from which the decoder follows."""

    def __init__(self, width: int, values: int) -> None:
        size = len(AROUND) * width
        self._products_FF, self._targets_FD = np.zeros((size, size)), np.zeros((size, values))
        self._columns_F, self._mean_D, self._patches = np.zeros(size), np.zeros(values), 0

    def add(self, vectors_BLP: Floats, patches_BLD: npt.NDArray[np.uint8], grid: tuple[int, int]) -> None:
        """Add the vectors and the patches of some images. Sums over one call are made in float32."""
        columns_NF = around(vectors_BLP, grid).reshape(-1, len(self._columns_F))
        patches_ND = patches_BLD.reshape(len(columns_NF), -1).astype(np.float32)
        self._products_FF += columns_NF.T @ columns_NF
        self._targets_FD += columns_NF.T @ patches_ND
        self._columns_F += columns_NF.sum(axis=0, dtype=np.float64)
        self._mean_D += patches_ND.sum(axis=0, dtype=np.float64)
        self._patches += len(columns_NF)

    def decoder(self) -> NeighbourhoodDecoder:
        """Return the decoder of least squared error among those of rank RANK.

        Of the full solution W, with X'X the products of the columns, the best basis is that of the largest eigenvectors of W' X'X W
        (reduced-rank regression; Izenman 1975, "Reduced-rank regression for the multivariate linear model", section 2).
        """
        mean_F, mean_D = self._columns_F / self._patches, self._mean_D / self._patches
        products_FF = self._products_FF / self._patches - np.outer(mean_F, mean_F)
        targets_FD = self._targets_FD / self._patches - np.outer(mean_F, mean_D)
        ridge = max(RIDGE * float(np.trace(products_FF)) / len(products_FF), 1e-9)
        solution_FD = np.linalg.solve(products_FF + ridge * np.eye(len(products_FF)), targets_FD)
        _, vectors_DD = np.linalg.eigh(solution_FD.T @ targets_FD)  # W' (X'X + ridge) W, ascending
        basis_DR = vectors_DD[:, ::-1][:, :RANK]
        basis_DR = basis_DR * np.sign(basis_DR[np.abs(basis_DR).argmax(axis=0), np.arange(basis_DR.shape[1])])  # the sign is arbitrary
        weights_FR = halves(solution_FD @ basis_DR)
        basis_RD = halves(basis_DR.T)
        return NeighbourhoodDecoder(weights_FR, basis_RD, halves(mean_D - mean_F @ weights_FR @ basis_RD))


def halves(values: npt.NDArray[np.floating]) -> Floats:
    """Return the values rounded to float16, in which they are stored, as float32."""
    return values.astype(np.float16).astype(np.float32)
