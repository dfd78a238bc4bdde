"""A decoded picture as it is stored, and how it becomes the square that a tokenizer was made for: cut, resized, composited, turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from tokenshards.pipeline.shards.spec import Preprocess

__all__ = ["Picture", "Region", "middle_square", "resized_view", "usual_region", "usual_view"]

MAX_ASPECT = 8
"""Longest pictures of which more is resized than is kept, where the short side is resized first."""

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
"""Left, top, right, bottom in pixels of an image as stored."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture as it is stored: not yet turned, resized or composited."""

    image: Image.Image
    """L, RGB or RGBA."""
    region: Region
    """The whole picture in pixels of the image."""
    scale: float
    """Pixels of the image for one of the source; below 1 where JPEG decoded at a smaller scale."""
    orientation: int
    """EXIF orientation 1 to 8."""
    width: int
    height: int
    """Of the source in pixels, upright."""


def usual_region(picture: Picture, preprocess: Preprocess) -> Region:
    """Return what the usual view shows, in pixels of the image."""
    if preprocess.short_side is not None:
        return _short_side_cut(picture.image.size, preprocess.short_side, preprocess.size)[2]
    return middle_square(picture.region) if preprocess.resize == "crop" else picture.region


def middle_square(region: Region) -> Region:
    """Return the largest square in the middle of a region that begins at 0, 0."""
    _, _, width, height = region
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def usual_view(picture: Picture, preprocess: Preprocess) -> Image.Image:
    """Return the picture as the tokenizer was made for, upright RGB of `size` x `size`."""
    if preprocess.short_side is None:
        return resized_view(picture, preprocess, usual_region(picture, preprocess), preprocess.size)
    small = _resized_and_cut(picture.image, preprocess.short_side, preprocess.size, _RESAMPLING[preprocess.filter])
    return _finished(small, picture, preprocess)


def resized_view(picture: Picture, preprocess: Preprocess, region: Region, size: int) -> Image.Image:
    """Return a region of the image, upright RGB of `size` x `size`."""
    small = picture.image.resize((size, size), _RESAMPLING[preprocess.filter], box=region)
    return _finished(small, picture, preprocess)


def _finished(small: Image.Image, picture: Picture, preprocess: Preprocess) -> Image.Image:
    if small.mode == "RGBA":
        opaque = Image.new("RGB", small.size, preprocess.background)
        opaque.paste(small, mask=small.getchannel("A"))
        small = opaque
    elif small.mode == "L":
        small = small.convert("RGB")
    return small.transpose(_UPRIGHT[picture.orientation]) if picture.orientation in _UPRIGHT else small


def _short_side_cut(image: tuple[int, int], short_side: int, size: int) -> tuple[tuple[int, int], Region, Region]:
    """Return what the image is resized to, the cut out of that, and the same cut in pixels of the image; rounded as torchvision does."""
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
    """Resize the short side to `short_side` and cut `size` x `size` pixels out of the middle.

    Resizing the part alone is not the same to the last bit, because Pillow then clips between its two passes in another order. It is done
    for very long pictures, of which else far more pixels would be made than are kept.
    """
    resized, cut, part = _short_side_cut(image.size, short_side, size)
    if max(image.size) <= MAX_ASPECT * min(image.size):
        return image.resize(resized, resampling).crop(cut)
    return image.resize((size, size), resampling, box=part)
