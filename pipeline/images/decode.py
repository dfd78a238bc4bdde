"""Bytes of any image that Pillow opens -> uint8 RGB pixels, by the preprocessing of a tokenizer's spec.

We use Pillow alone. On ImageNet JPEGs at 128 px with one thread, libjpeg-turbo through simplejpeg is no faster for `full` and less than
10 % faster for `dct_scaled`: Pillow bundles the same library and gets the same DCT scaling through `draft`.
"""

from __future__ import annotations

import io
import math
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageChops, UnidentifiedImageError

from tokenshards.pipeline.errors import BadInput, Reason, shorten
from tokenshards.pipeline.images.resize import Region, SourceImage, usual_view
from tokenshards.pipeline.shards.spec import Preprocess

__all__ = [
    "DECODER",
    "DecodedImage",
    "decode_image",
    "decoding",
    "first_bytes",
    "image_extensions",
    "open_image",
]

DECODER = f"pillow-{PIL.__version__.partition('.')[0]}"
"""Library and major version: together with the preprocessing they decide the pixels."""

MAX_SIDE = 1 << 20
"""Longest allowed side in pixels; the memory of a resampling filter grows with it."""

# Formats that need an external program or a plug-in, or that Pillow can name but not load.
_UNREADABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

_CONVERTIBLE_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}

_JPEG, _PNG, _GIF, _RIFF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SIGNATURES = (_JPEG, _PNG, _GIF, _RIFF, b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")

_EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error)
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """`pixels_HWC` uint8 [size, size, 3], read-only; `width` and `height` of the source image in pixels, after any EXIF rotation."""

    pixels_HWC: npt.NDArray[np.uint8]
    width: int
    height: int


@cache
def _readable_formats() -> tuple[str, ...]:
    Image.preinit()  # puts the common formats first, so that Pillow does not try a dozen others before them
    Image.init()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in _UNREADABLE_FORMATS)


@cache
def image_extensions() -> frozenset[str]:
    """Return the file extensions that `decode_image` can open, in lower case with the dot, such as `.jpeg`."""
    readable = {*_readable_formats(), "MPO"}  # the JPEG plug-in opens MPO files
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in readable)


def decode_image(data: bytes, preprocess: Preprocess, *, max_pixels: int = 1 << 27) -> DecodedImage:
    """Decode the first frame of an encoded image to RGB and resize it to `preprocess.size`.

    Every mode becomes uint8 RGB: 16-bit samples keep their high byte, transparency is composited on `preprocess.background`, ICC profiles
    are ignored. The image is rotated by its EXIF orientation if `preprocess` says so; unreadable EXIF data counts as upright. The result
    depends only on the arguments and DECODER. An image of more than `max_pixels` is refused before decoding.
    Raises only BadInput, with a permanent reason; MemoryError passes through, because it says nothing about the image.
    """
    with decoding(data):
        source = open_image(data, preprocess, max_pixels)
        return DecodedImage(np.asarray(usual_view(source, preprocess)), source.width, source.height)


@contextmanager
def decoding(data: bytes) -> Iterator[None]:
    """Turn every error that an image's bytes cause into BadInput with a permanent reason; MemoryError passes through."""
    if not data:
        raise BadInput(Reason.EMPTY, "the file has 0 bytes")
    try:
        with _quiet_pillow:
            yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # a plug-in may raise any type for hostile bytes, and only the bytes can be the cause
        raise _failure(error, data) from error


class _QuietPillow:
    """Context that ignores Pillow's warnings. `warnings.catch_warnings` alone loses filters when threads overlap.

    One filter at the start of a worker would not do: images are decoded in processes of users too, and their filters are theirs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_quiet_pillow = _QuietPillow()


def open_image(data: bytes, preprocess: Preprocess, max_pixels: int, detail: float = 1.0) -> SourceImage:
    """Return the decoded image. If JPEG decodes at a smaller scale, the scale is `detail` times that of the usual view."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=_readable_formats())
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        limit = f"expected at most {max_pixels} pixels and {MAX_SIDE} per side"
        raise BadInput(Reason.TOO_MANY_PIXELS, f"{width} x {height} pixels; {limit}")
    region: Region = (0, 0, width, height)
    if preprocess.decode_mode == "dct_scaled":
        wanted = math.ceil(preprocess.size * detail)
        drafted = image.draft(None, (wanted, wanted))
        region = drafted[1] if drafted else region
    image.load()
    orientation = _orientation(image) if preprocess.exif_orientation else 1
    upright = (height, width) if orientation >= 5 else (width, height)
    return SourceImage(_resizable(image), region, region[2] / width, orientation, *upright)


def _resizable(image: Image.Image) -> Image.Image:
    """Return the image as L, RGB or RGBA, the modes whose samples can be averaged directly."""
    mode = image.mode
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode == "I" and image.format in ("PNG", "PPM"):  # 16-bit samples; other files may hold any 32-bit range
        return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if mode not in _CONVERTIBLE_MODES:
        raise BadInput(Reason.UNSUPPORTED_MODE, f"{image.format} image of mode {mode}; expected a mode whose range of values is defined")
    if mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow treats every CMYK JPEG as Adobe's, which are stored inverted
    if image.has_transparency_data:
        return image.convert("RGBA")
    if mode == "1":
        return image.convert("L")
    return image if mode in ("L", "RGB") else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _EXIF_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def first_bytes(data: bytes) -> str:
    """Return the first bytes of a file as messages show them."""
    return shorten(data[:16])


def _failure(error: Exception, data: bytes) -> BadInput:
    text = _ADDRESS.sub("", str(error))  # equal inputs must give equal quarantine files
    detail = f"{type(error).__name__}: {text[:300]}; {len(data)} bytes that begin with {first_bytes(data)}"
    if isinstance(error, Image.DecompressionBombError):
        return BadInput(Reason.TOO_MANY_PIXELS, detail)
    if "Decompressed data too large" in text or "Too much memory used in text chunks" in text:
        return BadInput(Reason.DECOMPRESSION_BOMB, detail)
    if isinstance(error, UnidentifiedImageError) and not data.startswith(_SIGNATURES):
        return BadInput(Reason.NOT_AN_IMAGE, detail)
    if "truncated" in text.lower() or _lacks_its_end(data):
        return BadInput(Reason.TRUNCATED, detail)
    return BadInput(Reason.CORRUPT, detail)


def _lacks_its_end(data: bytes) -> bool:
    if data.startswith(_JPEG):
        return b"\xff\xd9" not in data
    if data.startswith(_PNG):
        return b"IEND" not in data
    if data.startswith(_GIF):
        return not data.endswith(b";")
    if data.startswith(_RIFF):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return False
