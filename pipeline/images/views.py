"""Bytes of an image -> the pixels of all its views: decode once, then cut by the view policy.

Shapes: V views, H height, W width, C = 3 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.config import ImageRules
from tokenshards.pipeline.images.decode import USUAL_RULES, decoding, open_image
from tokenshards.pipeline.images.remarks import Remark
from tokenshards.pipeline.images.resize import Region, SourceImage, middle_square, resized_view, usual_region, usual_view
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.view_policy import Box, ViewPolicy, random_view

__all__ = ["DecodedViews", "decode_views"]

Pixels: TypeAlias = npt.NDArray[np.uint8]

_MIRRORED_X, _MIRRORED_Y = (2, 3, 6, 7), (3, 4, 7, 8)
"""EXIF orientations that mirror left and right, or top and bottom; orientations from 5 on first swap rows and columns."""


@dataclass(frozen=True, slots=True)
class DecodedViews:
    """`pixels_VHWC` uint8 [V, size, size, 3]; per view its box in the source and whether it is mirrored; the source's size in pixels."""

    pixels_VHWC: Pixels
    boxes: tuple[Box, ...]
    mirrored: tuple[bool, ...]
    width: int
    height: int
    remarks: tuple[Remark, ...] = ()


def decode_views(
    data: bytes, preprocess: Preprocess, policy: ViewPolicy, *, seed: int, sample_id: str, rules: ImageRules = USUAL_RULES
) -> DecodedViews:
    """Decode an image and cut its views.

    View 0 is the result of `decode_image`; for `ten-crop` it is the centre crop. A JPEG that was decoded at a smaller scale for view 0 is
    decoded again for random views, so that no crop is enlarged. Raises what `decode_image` raises.
    """
    with decoding(data):
        if policy.kind == "ten-crop":
            opened = open_image(data, preprocess, rules, policy.detail)
            source = opened.source
            cut = _ten_crop(source, preprocess, policy.detail)
        else:
            opened = open_image(data, preprocess, rules)
            source = opened.source
            cut = [(np.asarray(usual_view(source, preprocess)), _box(usual_region(source, preprocess), source), False)]
            if policy.kind == "flip":
                (pixels, box, _) = cut[0]
                cut.append((pixels[:, ::-1], box, True))
            elif policy.kind == "random":
                fine = source if source.scale == 1 else open_image(data, preprocess, rules, policy.detail).source
                cut += [_random(fine, preprocess, seed, sample_id, view) for view in range(1, policy.count)]
        pixels_VHWC = np.stack([pixels for pixels, _, _ in cut])
    boxes, mirrored = tuple(box for _, box, _ in cut), tuple(mirrored for _, _, mirrored in cut)
    return DecodedViews(pixels_VHWC, boxes, mirrored, source.width, source.height, opened.remarks)


_View: TypeAlias = tuple[Pixels, Box, bool]


def _ten_crop(source: SourceImage, preprocess: Preprocess, crop_range: float) -> list[_View]:
    """Return the centre and the corners (top left, top right, bottom left, bottom right) of the resized image, then all five mirrored."""
    size = preprocess.size
    resized = max(size + 1, int(size * crop_range))
    region = middle_square(source.region) if preprocess.resize == "crop" else source.region
    pixels = np.asarray(resized_view(source, preprocess, region, resized))
    left, top, width, height = _box(region, source)
    edge = resized - size
    views: list[_View] = []
    for x, y in ((round(edge / 2), round(edge / 2)), (0, 0), (edge, 0), (0, edge), (edge, edge)):
        box = (left + x * width / resized, top + y * height / resized, size * width / resized, size * height / resized)
        views.append((pixels[y : y + size, x : x + size], box, False))
    return views + [(pixels[:, ::-1], box, True) for pixels, box, _ in views]


def _random(source: SourceImage, preprocess: Preprocess, seed: int, sample_id: str, view: int) -> _View:
    box, mirrored = random_view(source.width, source.height, seed=seed, sample_id=sample_id, view=view)
    pixels = np.asarray(resized_view(source, preprocess, _region(box, source), preprocess.size))
    return (pixels[:, ::-1] if mirrored else pixels), box, mirrored


def _box(region: Region, source: SourceImage) -> Box:
    """Convert a region of the decoded image to a box in the upright source."""
    left, top, right, bottom = (value / source.scale for value in region)
    width, height = right - left, bottom - top
    if source.orientation >= 5:
        left, top, width, height = top, left, height, width
    if source.orientation in _MIRRORED_X:
        left = source.width - left - width
    if source.orientation in _MIRRORED_Y:
        top = source.height - top - height
    return (left, top, width, height)


def _region(box: Box, source: SourceImage) -> Region:
    """Convert a box in the upright source to a region of the decoded image."""
    left, top, width, height = box
    if source.orientation in _MIRRORED_X:
        left = source.width - left - width
    if source.orientation in _MIRRORED_Y:
        top = source.height - top - height
    if source.orientation >= 5:
        left, top, width, height = top, left, height, width
    _, _, right_edge, bottom_edge = source.region
    scale = source.scale
    return (left * scale, top * scale, min(right_edge, (left + width) * scale), min(bottom_edge, (top + height) * scale))
