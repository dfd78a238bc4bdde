"""The projection of `layered-kmeans`: directions in which sites differ, while a site, its neighbour and its changed copy agree.

A site and its neighbour in a changed copy of the image show nearly the same thing. With S_t the covariance of sites and S_w that of the
differences of such pairs, the directions v that solve S_t v = lambda S_w v with the largest lambda vary most among sites for what they vary
within pairs: linear discriminant analysis with pairs in the place of classes (Fukunaga 1990, "Introduction to Statistical Pattern
Recognition", section 10.2; the generalised eigenproblem by Cholesky factors, Golub & Van Loan 2013, "Matrix Computations", section 8.7).

Shapes: B images, L = h x w sites, K values of a site, P projected values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.tokenizers.base import Images
from tokenshards.pipeline.tokenizers.layered.features import Floats

__all__ = ["Agreement", "changed_copy"]

BRIGHTNESS, CONTRAST, SATURATION, CHANNEL = 0.3, 0.3, 0.4, 0.08
"""A copy is changed by up to these shares."""
GREY = np.array([0.299, 0.587, 0.114], np.float32)
RIDGE = 0.03
"""Of the mean variance of sites, added to S_w, which few images would not fill."""


def changed_copy(image_HWC: Images, rng: np.random.Generator) -> Images:
    """Return the mirror image with other brightness, contrast, saturation and colour balance."""
    brightness, contrast, saturation = (1 + rng.uniform(-reach, reach) for reach in (BRIGHTNESS, CONTRAST, SATURATION))
    balance_C = (1 + rng.uniform(-CHANNEL, CHANNEL, 3)).astype(np.float32)
    colours = image_HWC[:, ::-1].astype(np.float32) * np.float32(brightness) * balance_C
    colours = (colours - colours.mean()) * np.float32(contrast) + colours.mean()
    grey_HW1 = (colours @ GREY)[:, :, None]
    colours = (colours - grey_HW1) * np.float32(saturation) + grey_HW1
    found: Images = np.clip(np.rint(colours), 0, 255).astype(np.uint8)
    return found


class Agreement:
    """Sums over images from which the projection follows."""

    def __init__(self, width: int) -> None:
        self._within = np.zeros((width, width))
        self._products = np.zeros((width, width))
        self._sum = np.zeros(width)
        self._pairs = self._sites = 0

    def add(self, sites_BLK: Floats, copies_BLK: Floats, grid: tuple[int, int]) -> None:
        """Add the sites of images, and those of their changed copies, which are mirrored. Sums over one call are made in float32."""
        own, copies = (values.reshape(len(values), *grid, -1) for values in (sites_BLK, copies_BLK))
        copies = copies[:, :, ::-1]
        for near, other in ((own[:, :, 1:], copies[:, :, :-1]), (own[:, 1:], copies[:, :-1])):
            apart = (near - other).reshape(-1, own.shape[3])
            self._within += apart.T @ apart
            self._pairs += 2 * len(apart)
        flat = own.reshape(-1, own.shape[3])
        self._products += flat.T @ flat
        self._sum += flat.sum(axis=0, dtype=np.float64)
        self._sites += len(flat)

    def projection(self, count: int) -> Floats:
        """Return the `count` directions of largest lambda, [K, P] with v' S_w v = 1."""
        mean_K = self._sum / self._sites
        total = self._products / self._sites - np.outer(mean_K, mean_K)
        within = self._within / self._pairs + RIDGE * np.trace(total) / len(total) * np.eye(len(total))
        inverse = np.linalg.inv(np.linalg.cholesky(within))
        _, vectors = np.linalg.eigh(inverse @ total @ inverse.T)  # ascending
        found_KP: npt.NDArray[np.float64] = inverse.T @ vectors[:, ::-1][:, :count]
        # The sign of a direction is arbitrary: fix it.
        largest_P = found_KP[np.abs(found_KP).argmax(axis=0), np.arange(found_KP.shape[1])]
        return np.ascontiguousarray(found_KP * np.sign(largest_P), np.float32)
