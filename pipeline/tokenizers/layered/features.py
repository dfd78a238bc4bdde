"""Features of the tokenizer `layered-kmeans`: k-means on whitened patches at two resolutions, pooled around each site, and a projection.

A patch is whitened and compared with all centroids; its activation for a centroid is how much nearer that one is than the mean of all
("triangle" activation; Coates, Lee & Ng, "An analysis of single-layer networks in unsupervised feature learning", AISTATS 2011, section
3.2.2). One layer sees the image, one the image at half of its resolution. Activations are averaged over a square of twice the site, and
their square roots projected to few numbers.

Shapes: B images, H = W pixels of a side, h x w patches, L sites, D = 108 values of a patch, W whitened values, K centroids of a layer, A
of all layers, P projected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.activity import step as tell_step
from tokenshards.pipeline.tokenizers.base import Images

__all__ = ["COLOURS", "EDGE", "STRIDE", "VALUES", "VIEWS", "Floats", "LayeredFeatures", "PatchLayer", "PatchRows", "pooled"]

Floats = npt.NDArray[np.float32]
COLOURS = 255.0
PATCH, STRIDE = 6, 2
"""Side of a patch, and from patch to patch, in pixels of a view."""
VALUES = 3 * PATCH**2
"""D, values of a patch."""
EDGE = (PATCH - STRIDE) // 2
VIEWS = (1, 2)
"""What each layer sees: the image, and the image of half its side, in which each pixel is the mean of 2 x 2. A third view, of a quarter,
adds half to the time and nothing to what ids tell."""


class PatchRows:
    """All patches of one image after another, in memory that is kept: fresh memory for each image takes longer than its patches.

    `size` is the side of the images, `view` a member of VIEWS.
    """

    def __init__(self, size: int, view: int) -> None:
        side = size // view + 2 * EDGE
        self._view, self._wide = view, np.empty((side, side, 3), np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(self._wide, (PATCH, PATCH), axis=(0, 1))[::STRIDE, ::STRIDE]
        self._windows = windows.transpose(0, 1, 3, 4, 2)
        self._patches = np.empty(self._windows.shape, np.float32)

    def __call__(self, image_HWC: Images) -> Floats:
        """Return float32 [h * w, D] with colours from 0 to 255, until the next call. What lies outside of an image is its mirror image."""
        wide, places = self._wide, range(self._view)
        rows = np.add.reduce([image_HWC[place :: self._view] for place in places], axis=0, dtype=np.float32)
        columns = np.add.reduce([rows[:, place :: self._view] for place in places], axis=0)
        np.multiply(columns, np.float32(1 / self._view**2), out=wide[EDGE:-EDGE, EDGE:-EDGE])
        for line in (wide, wide.swapaxes(0, 1)):
            line[:EDGE], line[-EDGE:] = line[2 * EDGE : EDGE : -1], line[-EDGE - 2 : -2 * EDGE - 2 : -1]
        np.copyto(self._patches, self._windows)
        return self._patches.reshape(-1, VALUES)


def pooled(values_hwK: Floats, step: int) -> Floats:
    """Return [L, K]: the mean over a square of 2 * step patches around each site of step patches, which are an even number.

    The edge is repeated outside.
    """
    height, width, count = values_hwK.shape
    rows = _averages(height, step) @ values_hwK.reshape(height, -1)
    found: Floats = _averages(width, step) @ rows.reshape(-1, width, count)
    return found.reshape(-1, count)


@cache
def _averages(count: int, step: int) -> Floats:
    """Return [count / step, count]: what each of `count` patches in a row adds to the mean of each site."""
    found = np.zeros((count // step, count), np.float32)
    for site, weights in enumerate(found):
        first = site * step - step // 2
        np.add.at(weights, np.clip(np.arange(first, first + 2 * step), 0, count - 1), np.float32(1 / (2 * step)))
    return found


@dataclass(frozen=True, eq=False)
class PatchLayer:
    """Whitening of patches, and the centroids that they are compared with."""

    centre_D: Floats
    whitening_DW: Floats
    """Takes patches with colours from 0 to 1, after `centre_D` is subtracted."""
    centroids_KW: Floats

    @cached_property
    def _products(self) -> tuple[Floats, Floats, Floats]:
        """Whitening of colours up to 255 with its offset; -2 times the centroids above their squared lengths and ones.

        Two more columns, of ones and of the squared lengths of patches, let one product make squared distances.
        """
        whitening = np.pad(self.whitening_DW / np.float32(COLOURS), ((0, 0), (0, 2)))
        offset = np.append(-(self.centre_D @ self.whitening_DW), (1, 0))
        lengths_K = np.einsum("kw,kw->k", self.centroids_KW, self.centroids_KW)
        products = np.vstack([-2 * self.centroids_KW.T, lengths_K, np.ones_like(lengths_K)])
        return whitening, offset.astype(np.float32), np.ascontiguousarray(products, np.float32)

    def distances(self, patches_ND: Floats, out_NK: Floats) -> Floats:
        """Write the distances to all centroids, none above their mean, into `out_NK`; return the means [N].

        A mean less such a distance is the triangle activation.
        """
        whitening, offset, products = self._products
        values = patches_ND @ whitening
        values += offset
        values[:, -1] = np.einsum("nw,nw->n", values[:, :-2], values[:, :-2])
        np.matmul(values, products, out=out_NK)
        np.sqrt(np.abs(out_NK, out=out_NK), out=out_NK)  # rounding takes some below zero
        mean_N: Floats = out_NK @ np.full(len(self.centroids_KW), 1 / len(self.centroids_KW), np.float32)
        np.minimum(out_NK, mean_N[:, None], out=out_NK)
        return mean_N


@dataclass(frozen=True, eq=False)
class LayeredFeatures:
    """Fitted layers, their pooling, and a projection."""

    site: int
    layers: tuple[PatchLayer, ...]
    """One for each of VIEWS."""
    projection_AP: Floats
    """[A, 0] before it is fitted."""

    @property
    def width(self) -> int:
        """A, activations of a site."""
        return sum(len(layer.centroids_KW) for layer in self.layers)

    def sites(self, images_BHWC: Images) -> Floats:
        """Return the square roots of pooled activations [B, L, A] of uint8 RGB images."""
        found = np.empty((len(images_BHWC), (images_BHWC.shape[1] // self.site) ** 2, self.width), np.float32)
        for kept_LA, sites_LA in zip(found, self._sites_of_each(images_BHWC), strict=True):
            kept_LA[:] = sites_LA
        return found

    def _sites_of_each(self, images_BHWC: Images) -> Iterator[Floats]:
        """Yield [L, A] of one image after another, in the same memory, which stays in the cache."""
        size, grids = images_BHWC.shape[1], [images_BHWC.shape[1] // (STRIDE * view) for view in VIEWS]
        rows = [PatchRows(size, view) for view in VIEWS]
        rooms = [np.empty((grid, grid, len(layer.centroids_KW)), np.float32) for layer, grid in zip(self.layers, grids, strict=True)]
        sites_LA = np.empty(((size // self.site) ** 2, self.width), np.float32)
        for image_HWC in images_BHWC:
            tell_step()
            start = 0
            for layer, patches, distance_hwK, grid in zip(self.layers, rows, rooms, grids, strict=True):
                stop, step = start + len(layer.centroids_KW), self.site * grid // size
                mean_N = layer.distances(patches(image_HWC), distance_hwK.reshape(grid * grid, -1))
                np.subtract(pooled(mean_N.reshape(grid, grid, 1), step), pooled(distance_hwK, step), out=sites_LA[:, start:stop])
                start = stop
            yield np.sqrt(np.maximum(sites_LA, 0, out=sites_LA), out=sites_LA)

    def __call__(self, images_BHWC: Images) -> Floats:
        """Return float32 [B, L, P] of uint8 RGB images."""
        size = images_BHWC.shape[1]
        found = np.empty((len(images_BHWC), (size // self.site) ** 2, self.projection_AP.shape[1]), np.float32)
        for projected_LP, sites_LA in zip(found, self._sites_of_each(images_BHWC), strict=True):
            np.matmul(sites_LA, self.projection_AP, out=projected_LP)
        return found
