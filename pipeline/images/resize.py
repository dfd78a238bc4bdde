"""Turn a decoded source image into the square that a tokenizer expects: crop, resize, composite, rotate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from tokenshards.pipeline.shards.spec import Preprocess

__all__ = ["SourceImage", "Region", "middle_square", "resized_view", "usual_region", "usual_view"]

MAX_ASPECT = 8
"""Largest ratio of long to short side for which the whole image is resized before the crop."""

_RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")}

_T = Image.Transpose
_UPRIGHT = {
    2: _T.FLIP_LEFT_RIGHT,
    3: _T.ROTATE_180,
    4: _T.FLIP_TOP_BOTTOM,
    5: _T.TRANSPOSE,
    6: _T.ROTATE_270,
    7: _T.TRANSVERSE,
    8: _T.ROTATE_90,
}

Region: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the decoded image, before the EXIF rotation."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A decoded image, not yet rotated, resized or composited."""

    image: Image.Image
    """L, RGB or RGBA."""
    region: Region
    """The part of `image` that holds the whole source image."""
    scale: float
    """Pixels of `image` per pixel of the source image; below 1 if JPEG decoded at a smaller scale."""
    orientation: int
    """EXIF orientation 1 to 8."""
    width: int
    height: int
    """Width and height of the upright source image in pixels."""


def usual_region(source: SourceImage, preprocess: Preprocess) -> Region:
    """Return the region that the usual view shows."""
    if preprocess.short_side is not None:
        return _short_side_cut(source.image.size, preprocess.short_side, preprocess.size)[2]
    return middle_square(source.region) if preprocess.resize == "crop" else source.region


def middle_square(region: Region) -> Region:
    """Return the largest square in the middle of a region that begins at 0, 0."""
    _, _, width, height = region
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def usual_view(source: SourceImage, preprocess: Preprocess) -> Image.Image:
    """Return the view that the tokenizer expects: upright RGB, `size` x `size` pixels."""
    if preprocess.short_side is None:
        return resized_view(source, preprocess, usual_region(source, preprocess), preprocess.size)
    small = _resized_and_cut(source.image, preprocess.short_side, preprocess.size, _RESAMPLING[preprocess.filter])
    return _finished(small, source, preprocess)


def resized_view(source: SourceImage, preprocess: Preprocess, region: Region, size: int) -> Image.Image:
    """Return a region of the image as upright RGB, `size` x `size` pixels."""
    small = source.image.resize((size, size), _RESAMPLING[preprocess.filter], box=region)
    return _finished(small, source, preprocess)


def _finished(small: Image.Image, source: SourceImage, preprocess: Preprocess) -> Image.Image:
    if small.mode == "RGBA":
        opaque = Image.new("RGB", small.size, preprocess.background)
        opaque.paste(small, mask=small.getchannel("A"))
        small = opaque
    elif small.mode == "L":
        small = small.convert("RGB")
    return small.transpose(_UPRIGHT[source.orientation]) if source.orientation in _UPRIGHT else small


def _short_side_cut(image: tuple[int, int], short_side: int, size: int) -> tuple[tuple[int, int], Region, Region]:
    """Return the resized size, the crop of the resized image, and the same crop in pixels of the image; rounded as in torchvision."""
    width, height = (int(short_side * side / min(image)) for side in image)
    left, top = round((width - size) / 2), round((height - size) / 2)
    right, bottom = left + size, top + size
    part = (
        left * image[0] / width,
        top * image[1] / height,
        min(image[0], right * image[0] / width),
        min(image[1], bottom * image[1] / height),
    )
    return (width, height), (left, top, right, bottom), part


def _resized_and_cut(image: Image.Image, short_side: int, size: int, resampling: Image.Resampling) -> Image.Image:
    """Resize the short side to `short_side` and crop `size` x `size` pixels from the middle.

    Only very elongated images take the second path, which resizes the cropped part alone; otherwise we would compute many pixels that are
    cropped away. Its result can differ in the last bit, because Pillow then clips between its two passes in another order.
    """
    resized, cut, part = _short_side_cut(image.size, short_side, size)
    if max(image.size) <= MAX_ASPECT * min(image.size):
        return image.resize(resized, resampling).crop(cut)
    return image.resize((size, size), resampling, box=part)
