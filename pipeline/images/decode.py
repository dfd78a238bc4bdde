"""Bytes of any image that Pillow opens -> uint8 RGB pixels, by the preprocessing of a tokenizer's spec and the image rules of a plan.

We use Pillow alone. On ImageNet JPEGs at 128 px with one thread, libjpeg-turbo through simplejpeg is no faster for `full` and less than
10 % faster for `dct_scaled`: Pillow bundles the same library and gets the same DCT scaling through `draft`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageChops

from tokenshards.pipeline.config import ImageRules
from tokenshards.pipeline.errors import BadInput, Reason
from tokenshards.pipeline.images.extras import is_jxl, jxl_size
from tokenshards.pipeline.images.failures import JPEG_SIGNATURE, TOO_MUCH_TEXT, decoding, failure_of, shown_bytes
from tokenshards.pipeline.images.formats import PNG_SIGNATURE, describe_tiff, image_extensions, open_lazily, without_texts
from tokenshards.pipeline.images.remarks import Remark
from tokenshards.pipeline.images.resize import Region, SourceImage, usual_view
from tokenshards.pipeline.images.sixteen_bit import DARK_BITS, DeepImage, Tile, deep_image, with_tiles
from tokenshards.pipeline.shards.spec import Preprocess

__all__ = [
    "DECODER",
    "DecodedImage",
    "OpenedImage",
    "USUAL_RULES",
    "decode_image",
    "decoding",
    "exif_orientation",
    "image_extensions",
    "open_image",
    "prepare_image",
    "sixteen_bits_used",
]

DECODER = f"pillow-{PIL.__version__.partition('.')[0]}"
"""Library and major version: together with the preprocessing they decide the pixels."""

USUAL_RULES = ImageRules()
MAX_SIDE = 1 << 20
"""Longest allowed side in pixels; the memory of a resampling filter grows with it."""

_CONVERTIBLE_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}

JPEG_BLOCK = 16
"""Largest side of the blocks that JPEG decodes together."""
_JPEG_END = b"\xff\xd9"

_EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error)
_ORIENTATION_TAG = 0x0112

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """`pixels_HWC` uint8 [size, size, 3], read-only; `width` and `height` of the source image in pixels, after any EXIF rotation."""

    pixels_HWC: npt.NDArray[np.uint8]
    width: int
    height: int
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """A decoded source image with the remarks on it."""

    source: SourceImage
    remarks: tuple[Remark, ...]


def decode_image(data: bytes, preprocess: Preprocess, rules: ImageRules = USUAL_RULES) -> DecodedImage:
    """Decode the first frame of an encoded image to RGB and resize it to `preprocess.size`.

    Every mode becomes uint8 RGB: 16-bit samples keep their high byte or are scaled as `rules` say, transparency is composited on
    `preprocess.background`, ICC profiles are ignored. The image is rotated by its EXIF orientation if `preprocess` says so; unreadable EXIF
    data counts as upright. The result depends only on the arguments and DECODER. An image of more than `rules.max_pixels` is refused before
    decoding. Raises only BadInput, with a permanent reason; MemoryError passes through, because it says nothing about the image.
    """
    with decoding(data):
        opened = open_image(data, preprocess, rules)
        source = opened.source
        return DecodedImage(np.asarray(usual_view(source, preprocess)), source.width, source.height, opened.remarks)


def prepare_image(image: Image.Image, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Return the uint8 RGB pixels [size, size, 3] of an image that Pillow holds, prepared as `decode_image` prepares a file.

    The pixels are taken as they are: nothing is decoded at a smaller scale. The EXIF orientation counts if the image still has one. Raises
    BadInput for an image whose range of values is not defined, such as one of 16 bits.
    """
    plain = _resizable(image, b"")
    orientation = exif_orientation(image) if preprocess.exif_orientation else 1
    width, height = plain.size
    upright = (height, width) if orientation >= 5 else (width, height)
    return np.asarray(usual_view(SourceImage(plain, (0, 0, width, height), 1.0, orientation, *upright), preprocess))


def sixteen_bits_used(data: bytes, rules: ImageRules = USUAL_RULES) -> int | None:
    """Return how many bits, of 8, 10, 12, 14 or 16, a 16-bit image uses, 0 for a black one; None for an image of another depth.

    Raises what `decode_image` raises.
    """

    def look(data: bytes) -> int | None:
        image = _opened(data, rules)
        deep = deep_image(image)
        if deep is None:
            return None
        image, _ = _loaded(image, data, rules, None)
        return deep.used_bits(image, lambda tiles: _loaded(with_tiles(_opened(data, rules), tiles), data, rules, None)[0])

    with decoding(data):
        return _sparing_texts(look, data)


def open_image(data: bytes, preprocess: Preprocess, rules: ImageRules, detail: float = 1.0) -> OpenedImage:
    """Return the decoded image. If JPEG decodes at a smaller scale, the scale is `detail` times that of the usual view."""
    wanted = math.ceil(preprocess.size * detail) if preprocess.decode_mode == "dct_scaled" else None
    return _sparing_texts(lambda data: _open_image(data, preprocess.exif_orientation, rules, wanted), data)


def _open_image(data: bytes, turned: bool, rules: ImageRules, wanted: int | None) -> OpenedImage:
    image = _opened(data, rules)
    width, height = image.size
    region = _drafted(image, wanted)
    deep = deep_image(image)
    image, cut = _loaded(image, data, rules, wanted)
    if cut and _is_blank(image, math.ceil(JPEG_BLOCK * region[2] / width) if data.startswith(JPEG_SIGNATURE) else 0):
        raise BadInput(Reason.TRUNCATED, f"it ends before its first pixels; {shown_bytes(data)}")
    if deep is None:
        pixels, dark = _resizable(image, data), False
    else:
        pixels, dark = _eight_bits(deep, image, data, rules)
    orientation = exif_orientation(image) if turned else 1
    upright = (height, width) if orientation >= 5 else (width, height)
    remarks = [remark for remark, holds in ((Remark.TRUNCATED, cut), (Remark.DARK_16_BIT, dark)) if holds]
    return OpenedImage(SourceImage(pixels, region, region[2] / width, orientation, *upright), tuple(remarks))


def _opened(data: bytes, rules: ImageRules) -> Image.Image:
    """Return an image that is not loaded, of an allowed size."""
    size = jxl_size(data) if is_jxl(data) else None  # its plug-in decodes all pixels when it opens an image
    if size is not None:
        _check_size(*size, rules)
    image = open_lazily(data, rules.max_pixels)
    _check_size(*image.size, rules)
    return image


def _check_size(width: int, height: int, rules: ImageRules) -> None:
    if width * height > rules.max_pixels or max(width, height) > MAX_SIDE:
        limit = f"expected at most {rules.max_pixels} pixels (--max-pixels) and {MAX_SIDE} per side"
        raise BadInput(Reason.TOO_MANY_PIXELS, f"{width} x {height} pixels; {limit}")


def _drafted(image: Image.Image, wanted: int | None) -> Region:
    """Let JPEG decode at a smaller scale of at least `wanted` pixels; return the region that then holds the image."""
    whole: Region = (0, 0, *image.size)
    found = None if wanted is None else image.draft(None, (wanted, wanted))
    return found[1] if found else whole


def _sparing_texts(read: Callable[[bytes], _T], data: bytes) -> _T:
    """Call `read` with the bytes of an image. If Pillow refuses texts or the colour profile of a PNG as too large, leave them out."""
    for keep_orientation in (True, False):
        try:
            return read(data)
        except ValueError as error:
            if not data.startswith(PNG_SIGNATURE) or not str(error).startswith(TOO_MUCH_TEXT):
                raise
        data = without_texts(data, keep_orientation=keep_orientation)
    return read(data)


def _loaded(image: Image.Image, data: bytes, rules: ImageRules, wanted: int | None) -> tuple[Image.Image, bool]:
    """Load an image; return it, and whether it ends too early and was taken as far as it decodes.

    We set no global of Pillow, because threads with other rules may decode at the same time.
    """
    try:
        image.load()
        return image, False
    except MemoryError:
        raise
    except Exception as error:
        if not rules.accept_truncated or failure_of(error, data).reason is not Reason.TRUNCATED:
            raise
        try:
            part = _loaded_in_part(image, data, rules, wanted)
        except (OSError, SyntaxError, ValueError, LookupError):
            raise error from None
        return part, True


def _loaded_in_part(image: Image.Image, data: bytes, rules: ImageRules, wanted: int | None) -> Image.Image:
    """Return what decodes of an image that ends too early. What is missing is grey in a JPEG, black in other formats."""
    if data.startswith(JPEG_SIGNATURE):
        image = _opened(data + _JPEG_END, rules)
        _drafted(image, wanted)
    else:
        image.tile = []  # type: ignore[attr-defined]  # the decoder has already stored all pixels that it got
    image.load()
    return image


def _is_blank(image: Image.Image, unsure: int) -> bool:
    """Return whether all pixels are the same. A JPEG may make its first block of no data, so `unsure` x `unsure` pixels do not count."""
    pixels = np.asarray(image)
    if max(image.size) <= unsure:
        unsure = 0
    last = pixels[-1:, -1:]
    return bool((pixels[unsure:] == last).all() and (pixels[:unsure, unsure:] == last).all())


def _eight_bits(deep: DeepImage, image: Image.Image, data: bytes, rules: ImageRules) -> tuple[Image.Image, bool]:
    """Return a 16-bit image in 8 bits, and whether its high bytes are dark because it uses few of its bits."""

    def redecoded(tiles: list[Tile]) -> Image.Image:
        again = with_tiles(_opened(data, rules), tiles)
        try:
            again.load()
        except OSError:
            if not rules.accept_truncated:
                raise
            again = _loaded_in_part(again, data, rules, None)
        return again

    if rules.sixteen_bit == "scale":
        return _resizable(deep.scaled(image, redecoded), data), False
    return _resizable(deep.high_byte(image), data), 0 < deep.used_bits(image, redecoded) <= DARK_BITS


def _resizable(image: Image.Image, data: bytes) -> Image.Image:
    """Return the image as L, RGB or RGBA, the modes whose samples can be averaged directly."""
    mode = image.mode
    if mode not in _CONVERTIBLE_MODES:
        seen = describe_tiff(data)
        what = f"{image.format or 'an'} image of mode {mode}{'' if seen is None else f' ({seen})'}"
        raise BadInput(Reason.UNSUPPORTED_MODE, f"{what}; expected a mode whose range of values is defined")
    if mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow treats every CMYK JPEG as Adobe's, which are stored inverted
    if image.has_transparency_data:
        return image.convert("RGBA")
    if mode == "1":
        return image.convert("L")
    return image if mode in ("L", "RGB") else image.convert("RGB")


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 where it has none that can be read."""
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1  # its decoder has turned the image already, and the format says to ignore EXIF; a packed JPEG is not turned
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _EXIF_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
