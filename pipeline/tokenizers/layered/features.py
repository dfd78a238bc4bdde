"""Features of the tokenizer `layered-kmeans`: k-means on whitened patches at two resolutions, pooled around each site, and a projection.

A patch is whitened and compared with all centroids; its activation for a centroid is how much nearer that one is than the mean of all
("triangle" activation; Coates, Lee & Ng, "An analysis of single-layer networks in unsupervised feature learning", AISTATS 2011, section
3.2.2). One layer sees the image, one the image at half of its resolution. Activations are averaged over a square of twice the site, and
their square roots projected to few numbers.

Shapes: B images, H = W pixels of a side, h x w patches, L sites, D = 108 values of a patch, W whitened values, K centroids of a layer, A
of all layers, P projected.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.activity import step as tell_step
from tokenshards.pipeline.tokenizers.base import Images

__all__ = ["COLOURS", "EDGE", "STRIDE", "VALUES", "VIEWS", "Floats", "LayeredFeatures", "PatchLayer", "patch_rows", "pooled"]

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


def patch_rows(images_BHWC: Images, view: int) -> Floats:
    """Return all patches of images, float32 [B, h * w, D] with colours from 0 to 255; `view` is a member of VIEWS.

    What lies outside of an image is its mirror image.
    """
    values, places = images_BHWC.astype(np.float32), range(view)
    seen = sum(values[:, down::view, right::view] for down in places for right in places) / np.float32(view * view)
    wide = np.pad(seen, ((0, 0), (EDGE, EDGE), (EDGE, EDGE), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (PATCH, PATCH), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    batch, rows, columns = windows.shape[:3]
    return np.ascontiguousarray(windows.transpose(0, 1, 2, 4, 5, 3)).reshape(batch, rows * columns, VALUES)


def pooled(activations_hwK: Floats, step: int) -> Floats:
    """Return [L, K]: the mean activation over a square of 2 * step patches around each site of step patches, which are an even number.

    The edge is repeated outside.
    """
    edge = (step // 2, step // 2)
    wide = np.pad(activations_hwK, (edge, edge, (0, 0)), mode="edge")
    rows = _window_sums(_window_sums(wide, step, 0), step, 1)
    return np.asarray(rows.reshape(-1, rows.shape[2]) / np.float32(4 * step * step), np.float32)


def _window_sums(values: Floats, step: int, axis: int) -> Floats:
    """Return sums of 2 * step values along an axis, one for every `step` of them."""
    values = np.moveaxis(values, axis, 0)
    sums = values[: len(values) // step * step].reshape(-1, step, *values.shape[1:]).sum(axis=1, dtype=np.float32)
    return np.moveaxis(sums[:-1] + sums[1:], 0, axis)


@dataclass(frozen=True, eq=False)
class PatchLayer:
    """Whitening of patches, and the centroids that they are compared with."""

    centre_D: Floats
    whitening_DW: Floats
    """Takes patches with colours from 0 to 1, after `centre_D` is subtracted."""
    centroids_KW: Floats

    @cached_property
    def _products(self) -> tuple[Floats, Floats, Floats]:
        """Whitening of colours up to 255 with its offset; -2 times the centroids above their squared lengths.

        A last column of ones lets one product add these lengths.
        """
        whitening = np.pad(self.whitening_DW / np.float32(COLOURS), ((0, 0), (0, 1)))
        offset = np.append(-(self.centre_D @ self.whitening_DW), np.float32(1))
        lengths_K = np.einsum("kw,kw->k", self.centroids_KW, self.centroids_KW)
        return whitening, offset.astype(np.float32), np.ascontiguousarray(np.vstack([-2 * self.centroids_KW.T, lengths_K]), np.float32)

    def activations(self, patches_ND: Floats, out: Floats | None = None) -> Floats:
        """Return the triangle activations [N, K], in `out` where it is given: fresh memory for every image takes long."""
        whitening, offset, products = self._products
        values = patches_ND @ whitening + offset  # [N, W + 1]
        distance_NK = np.matmul(values, products, out=out)
        distance_NK += np.einsum("nw,nw->n", values, values)[:, None] - np.float32(1)
        np.sqrt(np.maximum(distance_NK, 0, out=distance_NK), out=distance_NK)
        mean_N = distance_NK @ np.full(distance_NK.shape[1], 1 / distance_NK.shape[1], np.float32)
        found_NK: Floats = np.subtract(mean_N[:, None], distance_NK, out=distance_NK)
        np.maximum(found_NK, 0, out=found_NK)
        return found_NK


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

    @property
    def _seen(self) -> list[tuple[PatchLayer, int]]:
        """Each layer with its view."""
        return list(zip(self.layers, VIEWS, strict=True))

    def sites(self, images_BHWC: Images) -> Floats:
        """Return the square roots of pooled activations [B, L, A] of uint8 RGB images."""
        batch, size = images_BHWC.shape[:2]
        found = np.empty((batch, (size // self.site) ** 2, self.width), np.float32)
        rooms = [np.empty(((size // (STRIDE * view)) ** 2, len(layer.centroids_KW)), np.float32) for layer, view in self._seen]
        for sites_LA, image_HWC in zip(found, images_BHWC, strict=True):  # the activations of one image stay in the cache
            tell_step()
            start = 0
            for (layer, view), room_NK in zip(self._seen, rooms, strict=True):
                cell, stop = STRIDE * view, start + len(layer.centroids_KW)  # pixels of the image from patch to patch
                activations_hwK = layer.activations(patch_rows(image_HWC[None], view)[0], room_NK).reshape(size // cell, size // cell, -1)
                np.sqrt(pooled(activations_hwK, self.site // cell), out=sites_LA[:, start:stop])
                start = stop
        return found

    def __call__(self, images_BHWC: Images) -> Floats:
        """Return float32 [B, L, P] of uint8 RGB images."""
        found: Floats = self.sites(images_BHWC) @ self.projection_AP
        return found
