"""Images with 16-bit samples: how many bits they use, and how their samples become 8 bits.

Cameras and scanners of 10, 12 or 14 bits store their samples in 16. The high byte of such samples is nearly black.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageChops

__all__ = ["DARK_BITS", "DeepImage", "Tile", "deep_image", "with_tiles"]

DARK_BITS = 14
"""An image that uses no more of its 16 bits has at most a quarter of its brightness in the high byte."""
_DEPTHS = (8, 10, 12, 14, 16)
"""Depths of devices: a dark image of a 12-bit camera is still taken as 12 bits, unless it is very dark."""
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_COLOUR_16 = re.compile(r"(RGB|RGBX|RGBA|RGBa);16([BLN])")

Tile: TypeAlias = tuple[Any, Any, Any, Any]
"""Codec, extents, offset, arguments, as Pillow's plug-ins list them."""
Redecode: TypeAlias = Callable[[list[Tile]], Image.Image]
"""Decodes the same bytes by other tiles."""


@dataclass(frozen=True, slots=True)
class DeepImage:
    """A 16-bit image as Pillow opened it. Of colours Pillow keeps the high bytes alone; other tiles decode the rest."""

    high: list[Tile] | None = None
    """Tiles that decode the high bytes, None if Pillow's own do."""
    low: list[Tile] | None = None
    """Tiles that decode the low bytes; None for one band, whose samples Pillow keeps whole."""
    grey_alpha: bool = False

    def used_bits(self, image: Image.Image, redecode: Redecode) -> int:
        """Return how many bits, of 8, 10, 12, 14 or 16, hold the samples of a loaded image; 0 for a black one. Alpha does not count."""
        if self.low is None:
            largest = int(_samples(image).max(initial=0))
        else:
            colour = _groups(self._high(image, redecode))[0]
            largest = _largest(colour) << 8 or _largest(_groups(self._low(redecode))[0])
        return next(depth for depth in _DEPTHS if largest < 1 << depth) if largest > 0 else 0

    def high_byte(self, image: Image.Image) -> Image.Image:
        """Return the high byte of each sample of a loaded image."""
        return image if self.low is not None else Image.fromarray((_samples(image) >> 8).astype(np.uint8))

    def scaled(self, image: Image.Image, redecode: Redecode) -> Image.Image:
        """Return a loaded image in 8 bits, scaled by the bits that it uses; one that uses 16 is the same as its high bytes."""
        if self.low is None:
            shift = max(0, self.used_bits(image, redecode) - 8)
            return Image.fromarray((_samples(image) >> shift).astype(np.uint8))
        if self.used_bits(image, redecode) in (0, 16):
            return image
        high, low = self._high(image, redecode), self._low(redecode)
        groups = [_joined(part, rest) for part, rest in zip(_groups(high), _groups(low), strict=True) if part]
        return Image.merge(high.mode, [band for group in groups for band in group])

    def _high(self, image: Image.Image, redecode: Redecode) -> Image.Image:
        return image if self.high is None else redecode(self.high)

    def _low(self, redecode: Redecode) -> Image.Image:
        image = redecode(self.low or [])
        if not self.grey_alpha:
            return image
        _, grey, _, alpha = image.split()  # the four bytes of a sample
        return Image.merge("RGBA", [grey, grey, grey, alpha])


def deep_image(image: Image.Image) -> DeepImage | None:
    """Return how to read a 16-bit image that is not loaded yet; None for an image of another depth."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return DeepImage()
    tiles: list[Tile] = list(getattr(image, "tile", ()))
    raw = {tile[3] if isinstance(tile[3], str) else tile[3][0] if tile[3] else "" for tile in tiles}
    if len(raw) != 1 or image.mode not in ("RGB", "RGBA"):
        return None
    name = str(raw.pop())
    if name == "LA;16B":
        return DeepImage(low=[_with_raw_mode(tile, "RGBA") for tile in tiles], grey_alpha=True)
    if (found := _COLOUR_16.fullmatch(name)) is not None:
        return DeepImage(low=[_with_raw_mode(tile, f"{found[1]};16{_SWAPPED[found[2]]}") for tile in tiles])
    if [tile[0] for tile in tiles] == ["ppm"] and tuple(tiles[0][3]) == ("RGB", 0xFFFF):  # any smaller range PPM states itself
        high, low = ([("raw", *tiles[0][1:3], (f"RGB;16{order}", 0, 1))] for order in "BL")
        return DeepImage(high=high, low=low)
    return None


def with_tiles(image: Image.Image, tiles: list[Tile]) -> Image.Image:
    """Return an image that is not loaded yet, to be decoded by other tiles."""
    file: Any = image
    make = getattr(type(file.tile[0]), "_make", tuple)
    file.tile = [make(tile) for tile in tiles]
    return image


def _with_raw_mode(tile: Tile, name: str) -> Tile:
    codec, extents, offset, args = tile
    return codec, extents, offset, name if isinstance(args, str) else (name, *args[1:])


def _samples(image: Image.Image) -> Any:
    return np.asarray(image) if image.mode != "I" else np.asarray(image).clip(0, 0xFFFF)


def _groups(image: Image.Image) -> tuple[list[Image.Image], list[Image.Image]]:
    """Return the bands of colour, and the band of alpha if there is one: each group has a range of its own."""
    bands = list(image.split())
    return bands[:3], bands[3:]


def _largest(bands: list[Image.Image]) -> int:
    return max(int(band.getextrema()[1]) for band in bands)  # type: ignore[arg-type]  # bands have one range each


def _joined(high: list[Image.Image], low: list[Image.Image]) -> list[Image.Image]:
    """Return the eight highest bits that a group of bands uses."""
    top = _largest(high) << 8
    shift = next(depth for depth in _DEPTHS if top < 1 << depth) - 8
    if shift == 8:
        return high
    upper = [value << (8 - shift) & 0xFF for value in range(256)]
    lower = [value >> shift for value in range(256)]
    return [ImageChops.add(one.point(upper), other.point(lower)) for one, other in zip(high, low, strict=True)]
