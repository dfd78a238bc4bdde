"""Bytes of a picture -> the pixels of all its views: decoded once, and cut as the view policy says.

Shapes: V views, H height, W width, C = 3 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.images.decode import decoding, open_picture
from tokenshards.pipeline.images.resize import Picture, Region, middle_square, resized_view, usual_region, usual_view
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.view_policy import Box, ViewPolicy, random_view

__all__ = ["DecodedViews", "decode_views"]

Pixels: TypeAlias = npt.NDArray[np.uint8]

_MIRRORED_X, _MIRRORED_Y = (2, 3, 6, 7), (3, 4, 7, 8)
"""EXIF orientations of which left and right, or top and bottom, change places; from 5 on, rows and columns do first."""


@dataclass(frozen=True, slots=True)
class DecodedViews:
    """`pixels_VHWC` uint8 [V, size, size, 3]; of each view its box in the source and whether it is mirrored; the source's size."""

    pixels_VHWC: Pixels
    boxes: tuple[Box, ...]
    mirrored: tuple[bool, ...]
    width: int
    height: int


def decode_views(
    data: bytes, preprocess: Preprocess, policy: ViewPolicy, *, seed: int, sample_id: str, max_pixels: int = 1 << 27
) -> DecodedViews:
    """Decode a picture and cut its views.

    View 0 is what `decode_image` gives, but of `ten-crop`, where it is the centre. A JPEG that was decoded at a smaller scale for view 0 is
    decoded again where its crops would be enlarged. Raises what `decode_image` raises.
    """
    with decoding(data):
        if policy.kind == "ten-crop":
            picture = open_picture(data, preprocess, max_pixels, policy.detail)
            cut = _ten_crop(picture, preprocess, policy.detail)
        else:
            picture = open_picture(data, preprocess, max_pixels)
            cut = [(np.asarray(usual_view(picture, preprocess)), _box(usual_region(picture, preprocess), picture), False)]
            if policy.kind == "flip":
                (pixels, box, _) = cut[0]
                cut.append((pixels[:, ::-1], box, True))
            elif policy.kind == "random":
                fine = picture if picture.scale == 1 else open_picture(data, preprocess, max_pixels, policy.detail)
                cut += [_random(fine, preprocess, seed, sample_id, view) for view in range(1, policy.count)]
        pixels_VHWC = np.stack([pixels for pixels, _, _ in cut])
    return DecodedViews(
        pixels_VHWC, tuple(box for _, box, _ in cut), tuple(mirrored for _, _, mirrored in cut), picture.width, picture.height
    )


_View: TypeAlias = tuple[Pixels, Box, bool]


def _ten_crop(picture: Picture, preprocess: Preprocess, crop_range: float) -> list[_View]:
    """Return the centre and the corners (top left, top right, bottom left, bottom right) of the picture resized, then all mirrored."""
    size = preprocess.size
    resized = max(size + 1, int(size * crop_range))
    region = middle_square(picture.region) if preprocess.resize == "crop" else picture.region
    pixels = np.asarray(resized_view(picture, preprocess, region, resized))
    left, top, width, height = _box(region, picture)
    edge = resized - size
    views: list[_View] = []
    for x, y in ((round(edge / 2), round(edge / 2)), (0, 0), (edge, 0), (0, edge), (edge, edge)):
        box = (left + x * width / resized, top + y * height / resized, size * width / resized, size * height / resized)
        views.append((pixels[y : y + size, x : x + size], box, False))
    return views + [(pixels[:, ::-1], box, True) for pixels, box, _ in views]


def _random(picture: Picture, preprocess: Preprocess, seed: int, sample_id: str, view: int) -> _View:
    box, mirrored = random_view(picture.width, picture.height, seed=seed, sample_id=sample_id, view=view)
    pixels = np.asarray(resized_view(picture, preprocess, _region(box, picture), preprocess.size))
    return (pixels[:, ::-1] if mirrored else pixels), box, mirrored


def _box(region: Region, picture: Picture) -> Box:
    """Return a region of the image as a box in the upright source."""
    left, top, right, bottom = (value / picture.scale for value in region)
    width, height = right - left, bottom - top
    if picture.orientation >= 5:
        left, top, width, height = top, left, height, width
    if picture.orientation in _MIRRORED_X:
        left = picture.width - left - width
    if picture.orientation in _MIRRORED_Y:
        top = picture.height - top - height
    return (left, top, width, height)


def _region(box: Box, picture: Picture) -> Region:
    """Return a box in the upright source as a region of the image."""
    left, top, width, height = box
    if picture.orientation in _MIRRORED_X:
        left = picture.width - left - width
    if picture.orientation in _MIRRORED_Y:
        top = picture.height - top - height
    if picture.orientation >= 5:
        left, top, width, height = top, left, height, width
    _, _, right_edge, bottom_edge = picture.region
    scale = picture.scale
    return (left * scale, top * scale, min(right_edge, (left + width) * scale), min(bottom_edge, (top + height) * scale))
