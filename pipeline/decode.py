"""Bytes of any picture that Pillow opens -> uint8 RGB pixels under the preprocessing policy of a tokenizer's spec.

Pillow alone does the work: measured on ImageNet JPEGs at 128 px, one thread, libjpeg-turbo through simplejpeg is no faster for `full` and
under a tenth faster for `dct_scaled`, because Pillow bundles the same library and reaches the same DCT scaling through `draft`.
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
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageChops, UnidentifiedImageError

from pipeline.errors import BadInput, Reason, shorten
from pipeline.shards.spec import Preprocess

__all__ = [
    "DECODER",
    "DecodedImage",
    "Picture",
    "Region",
    "decode_image",
    "decoding",
    "image_extensions",
    "middle_square",
    "open_picture",
    "resized_view",
    "usual_region",
    "usual_view",
]

DECODER = f"pillow-{PIL.__version__.partition('.')[0]}"
"""Library and major version: what decides the pixels besides the policy."""

MAX_SIDE = 1 << 20
"""Longest side in pixels; the tables of a resampling filter grow with it."""

# Formats that need an external program or a plug-in, or that Pillow only names and cannot load.
_UNREADABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

MAX_ASPECT = 8
"""Longest pictures of which more is resized than is kept, where the short side is resized first."""

_RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")}

_CONVERTIBLE_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}

_JPEG, _PNG, _GIF, _RIFF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SIGNATURES = (_JPEG, _PNG, _GIF, _RIFF, b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")

_EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error)
_ORIENTATION_TAG = 0x0112
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


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """`pixels_HWC` uint8 [size, size, 3], read-only; `width` and `height` of the original in pixels, upright where the policy says so."""

    pixels_HWC: npt.NDArray[np.uint8]
    width: int
    height: int


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


@cache
def _readable_formats() -> tuple[str, ...]:
    Image.preinit()  # puts the common formats first, so that no picture of theirs is shown to a dozen others before
    Image.init()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in _UNREADABLE_FORMATS)


@cache
def image_extensions() -> frozenset[str]:
    """Return the extensions of the files that `decode_image` can open: lower case, with their dot, such as `.jpeg`."""
    readable = {*_readable_formats(), "MPO"}  # an MPO file is opened by the JPEG plug-in
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in readable)


def decode_image(data: bytes, preprocess: Preprocess, *, max_pixels: int = 1 << 27) -> DecodedImage:
    """Decode the first frame of an encoded picture to RGB and bring it to the size that the policy states.

    Every mode becomes uint8 RGB: 16-bit samples keep their high byte, transparency is composited on `preprocess.background`, ICC profiles
    are ignored. The picture is turned by its EXIF orientation where the policy says so; EXIF data that cannot be read counts as upright.
    The result depends on nothing but the arguments and DECODER. Pictures of more than `max_pixels` are refused before they are decoded.
    Raises BadInput alone, with a permanent reason; MemoryError passes through, because it says nothing about the picture.
    """
    with decoding(data):
        picture = open_picture(data, preprocess, max_pixels)
        return DecodedImage(np.asarray(usual_view(picture, preprocess)), picture.width, picture.height)


@contextmanager
def decoding(data: bytes) -> Iterator[None]:
    """Turn whatever a picture's bytes provoke into BadInput with a permanent reason; MemoryError passes through."""
    if not data:
        raise BadInput(Reason.EMPTY, "the file has 0 bytes")
    try:
        with _quiet_pillow:
            yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # plug-ins meet hostile bytes with any type; nothing but the bytes can be the cause
        raise _failure(error, data) from error


class _QuietPillow:
    """Context in which Pillow's warnings are ignored. `warnings.catch_warnings` alone loses filters where threads overlap."""

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


def open_picture(data: bytes, preprocess: Preprocess, max_pixels: int, detail: float = 1.0) -> Picture:
    """Return a picture in memory; `detail` times finer than the usual view needs, where JPEG decodes at a smaller scale."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=_readable_formats())
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        limit = f"at most {max_pixels} pixels and {MAX_SIDE} a side are decoded"
        raise BadInput(Reason.TOO_MANY_PIXELS, f"{width} x {height} pixels; {limit}")
    region: Region = (0, 0, width, height)
    if preprocess.decode_mode == "dct_scaled":
        wanted = math.ceil(preprocess.size * detail)
        drafted = image.draft(None, (wanted, wanted))
        region = drafted[1] if drafted else region
    image.load()
    orientation = _orientation(image) if preprocess.exif_orientation else 1
    upright = (height, width) if orientation >= 5 else (width, height)
    return Picture(_resizable(image), region, region[2] / width, orientation, *upright)


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


def _resizable(image: Image.Image) -> Image.Image:
    """Return the picture as L, RGB or RGBA, the modes whose samples may be averaged as they are."""
    mode = image.mode
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode == "I" and image.format in ("PNG", "PPM"):  # 16-bit samples; other files may hold any 32-bit range
        return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if mode not in _CONVERTIBLE_MODES:
        raise BadInput(Reason.UNSUPPORTED_MODE, f"{image.format} picture of mode {mode}; modes with a stated range are converted")
    if mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for one of Adobe's, which are stored inverted
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


def _failure(error: Exception, data: bytes) -> BadInput:
    text = _ADDRESS.sub("", str(error))  # quarantine files of equal inputs are equal
    detail = f"{type(error).__name__}: {text[:300]}; {len(data)} bytes that begin with {shorten(data[:16])}"
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
