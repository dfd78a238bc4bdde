"""JPEG and WebP files of few bytes: an image is made smaller, encoded with one quality, decoded, and enlarged again.

JPEG counts its scan alone (the bytes between the SOS header and the end marker), because all files share Pillow's standard tables for
quantisation and entropy coding. WebP counts whole files.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from tokenshards.pipeline.errors import ConfigError, require

__all__ = ["FORMATS", "SmallFile", "resized"]

Pixels = npt.NDArray[np.uint8]

FORMATS = ("jpeg", "webp")
SUBSAMPLINGS = {"4:4:4": 0, "4:2:0": 2}
"""Pillow's numbers; lossy WebP has 4:2:0 alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallFile:
    """How an image becomes a small file."""

    format: str
    side: int
    """Pixels of the stored image."""
    quality: int
    subsampling: str = "4:2:0"
    """Of the colours."""

    def __post_init__(self) -> None:
        require(self.format in FORMATS, "format", self.format, " or ".join(FORMATS))
        require(self.side >= 1, "side", self.side, "at least 1 pixel")
        require(0 <= self.quality <= 100, "quality", self.quality, "0 to 100")
        known = list(SUBSAMPLINGS) if self.format == "jpeg" else ["4:2:0"]
        require(self.subsampling in known, "subsampling", self.subsampling, " or ".join(known))
        if not features.check(self.format if self.format == "webp" else "jpg"):
            raise ConfigError(f"this Pillow cannot write {self.format}; install a Pillow that can, or leave {self.format} out")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the settings from the value that `to_json` returned."""
        return cls(**value)

    def stored(self, image_HWC: Pixels) -> tuple[int, Pixels]:
        """Return the bytes that count, and the pixels that come back, in the size of the file."""
        room = io.BytesIO()
        small = Image.fromarray(resized(image_HWC, self.side))
        if self.format == "jpeg":
            small.save(room, "JPEG", quality=self.quality, subsampling=SUBSAMPLINGS[self.subsampling])
        else:
            small.save(room, "WEBP", quality=self.quality, method=6)
        data = room.getvalue()
        return scan_bytes(data) if self.format == "jpeg" else len(data), np.asarray(Image.open(room, formats=(self.format,)).convert("RGB"))

    def passed(self, image_HWC: Pixels) -> Pixels:
        """Return the image as it comes back, in its own size."""
        return resized(self.stored(image_HWC)[1], image_HWC.shape[0])


def resized(image_HWC: Pixels, side: int) -> Pixels:
    """Return a square image in another size, bicubic."""
    if image_HWC.shape[0] == side:
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((side, side), Image.Resampling.BICUBIC))


def scan_bytes(data: bytes) -> int:
    """Return the bytes of a JPEG's entropy-coded data, without the marker that ends the file."""
    at = 2
    while True:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        at += 2 + length
        if marker == 0xDA:  # start of scan
            return len(data) - at - 2
