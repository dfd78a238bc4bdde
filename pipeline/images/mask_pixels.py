"""Bytes of a mask image -> class numbers, and the cut of a mask that fits a view of its image.

A mask is an image of class numbers, so its values must come through unchanged: only lossless formats are read, no colour is converted, and
a cut takes the nearest pixel.

Shapes: H height and W width of the upright source image in pixels, S side of a view.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokenshards.pipeline.errors import BadInput, Reason
from tokenshards.pipeline.images.decode import decoding, exif_orientation
from tokenshards.pipeline.images.formats import open_lazily
from tokenshards.pipeline.mask_rules import MaskRules
from tokenshards.pipeline.view_policy import Box

__all__ = ["LOSSLESS_EXTENSIONS", "cut_mask", "decode_mask", "raw_mask", "stored_values"]

Values = npt.NDArray[Any]
_LOSSLESS = {"BMP", "DIB", "GIF", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF"}
_LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp"}
LOSSLESS_EXTENSIONS = frozenset(".png .tif .tiff .bmp .gif .pgm .ppm .pbm .pnm .tga .pcx .webp".split())
"""Of files that may be masks; a WebP only if it is lossless."""
_EXPECTED = "expected one channel of class numbers in a lossless format, such as a PNG in grey or with a palette"
_GREY_STEPS = {2: 85, 4: 17}
"""Bits of a grey sample -> the factor by which Pillow spreads the samples over 0 ... 255."""
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


def decode_mask(data: bytes, size: tuple[int, int], rules: MaskRules, *, ignore: int, max_pixels: int, turned: bool) -> Values:
    """Return the class numbers [H, W] of a mask, as `rules` store them, with `ignore` where a pixel has no class.

    `size` is (W, H) of the upright image, which the mask must have. `turned`: images are turned by their EXIF orientation, and so is a mask
    that has one itself. Raises BadInput with the reason `bad_mask`; MemoryError passes through.
    """
    try:
        raw = raw_mask(data, max_pixels=max_pixels, turned=turned)
    except BadInput as error:
        raise _bad(error.detail if error.reason is Reason.BAD_MASK else f"the mask cannot be read: {error.detail}") from None
    width, height = raw.shape[1], raw.shape[0]
    if (width, height) != size:
        hint = "; it would fit if the image were not turned by its EXIF orientation" if turned and (height, width) == size else ""
        raise _bad(f"the mask has {width} x {height} pixels, its image {size[0]} x {size[1]}; expected the same size{hint}")
    return stored_values(raw, rules, ignore)


def raw_mask(data: bytes, *, max_pixels: int, turned: bool) -> Values:
    """Return the values [H, W] of a mask as its file holds them. Raises BadInput."""
    with decoding(data):
        image = open_lazily(data, max_pixels)
        if image.size[0] * image.size[1] > max_pixels:
            raise _bad(f"{image.size[0]} x {image.size[1]} pixels; expected at most {max_pixels} (--max-pixels)")
        _refuse_lossy(image, data)
        step = _grey_step(image, data)
        image.load()
        values = _one_channel(image, data)
        values = values if step == 1 else values // step
        return _upright(values, exif_orientation(image)) if turned else values


def stored_values(raw: Values, rules: MaskRules, ignore: int) -> Values:
    """Return values as they are stored: mapped and ignored as `rules` say, in the dtype whose largest value is `ignore`."""
    dtype = np.dtype(rules.dtype)
    low, high = int(raw.min(initial=0)), int(raw.max(initial=0))
    if low >= 0 and high <= ignore and not rules.mask_ignore and not rules.mask_map:
        return raw.astype(dtype)
    stored = np.full(raw.shape, ignore, np.int64)
    known = (raw >= 0) & (raw <= ignore)
    stored[known] = raw[known]
    for old, new in rules.mask_map:
        stored[raw == old] = new
    for value in rules.mask_ignore:
        stored[raw == value] = ignore
    named = np.isin(raw, [*rules.mask_ignore, *(old for old, _ in rules.mask_map)])
    if not (known | named).all():
        value = int(raw[~(known | named)][0])
        bits = " --mask-bits 16 stores numbers up to 65,534." if ignore == 255 and 0 < value < 1 << 16 else ""
        raise _bad(
            f"the mask holds the value {value}; expected class numbers from 0 to {ignore - 1:,}, or {ignore:,} for pixels without a class."
            f"{bits} --mask-ignore {value} makes such pixels ones without a class, --mask-map {value}=N of class N. Plan again, into "
            "another output, with one of these"
        )
    return stored.astype(dtype)


def cut_mask(mask_HW: Values, box: Box, size: int, *, mirrored: bool) -> Values:
    """Return the mask [S, S] of the view that shows `box` of the upright image: the pixel under the centre of each pixel of the view."""
    left, top, width, height = box
    centres = np.arange(size) + 0.5
    columns = np.clip(np.floor(left + centres * width / size).astype(np.int64), 0, mask_HW.shape[1] - 1)
    rows = np.clip(np.floor(top + centres * height / size).astype(np.int64), 0, mask_HW.shape[0] - 1)
    cut = mask_HW[rows[:, None], columns[None, :]]
    return cut[:, ::-1] if mirrored else cut


def _upright(values: Values, orientation: int) -> Values:
    """Turn an array as EXIF says; from 5 on rows and columns are swapped first."""
    values = values.T if orientation >= 5 else values
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def _bad(detail: str) -> BadInput:
    return BadInput(Reason.BAD_MASK, detail)


def _refuse_lossy(image: Image.Image, data: bytes) -> None:
    kind = str(image.format)
    compression = str(image.info.get("compression", ""))
    lossy = compression in _LOSSY_TIFF if kind == "TIFF" else kind == "WEBP" and b"VP8L" not in data[:64]
    if kind not in (*_LOSSLESS, "WEBP") or lossy:
        name = f"TIFF compressed as {compression}" if kind == "TIFF" else kind
        raise _bad(f"the mask is a {name}, whose compression may change class numbers; {_EXPECTED}")


def _grey_step(image: Image.Image, data: bytes) -> int:
    """Return by what Pillow multiplies grey samples of few bits. Raises BadInput where it changes values in another way."""
    if image.format == "PNG" and image.mode == "L":
        return _GREY_STEPS.get(data[24], 1)  # the bit depth of the header
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        if image.mode in ("L", "1") and tags.get(_PHOTOMETRIC) == 0:
            raise _bad(f"the mask is a TIFF in which 0 is white, so its class numbers are not sure; {_EXPECTED}")
        return _GREY_STEPS.get(max(tags.get(_BITS_PER_SAMPLE, (8,))), 1) if image.mode == "L" else 1
    if image.format == "PPM" and image.tile and image.tile[0][0] == "ppm":  # type: ignore[attr-defined]
        raise _bad("the mask is a PGM whose largest value is neither 255 nor 65535, which is read as a scale of grey; write it as a PNG")
    return 1


def _one_channel(image: Image.Image, data: bytes) -> Values:
    mode = image.mode
    if mode in ("1", "L", "P", "I") or mode.startswith("I;16"):
        values = np.asarray(image)
        return values.astype(np.uint8) if values.dtype == bool else values
    if mode not in ("LA", "PA", "RGB", "RGBA"):
        raise _bad(f"the mask is a {image.format} of mode {mode}; {_EXPECTED}")
    if image.format == "PNG" and data[24] == 16:
        raise _bad(f"the mask is a PNG of {len(image.getbands())} channels of 16 bits; {_EXPECTED}")
    bands = np.asarray(image)
    if mode in ("LA", "PA", "RGBA"):
        if not (bands[..., -1] == 255).all():
            raise _bad(f"the mask has an alpha channel that is not opaque everywhere (mode {mode}); {_EXPECTED}")
        bands = bands[..., :-1]
    if not _equal(bands[..., index] for index in range(bands.shape[-1])):
        colours = len(np.unique(bands.reshape(-1, bands.shape[-1]), axis=0))
        raise _bad(
            f"the mask is a colour image (mode {mode}, {colours:,} colours); {_EXPECTED}. Write the number of its class for each colour"
        )
    return bands[..., 0]


def _equal(channels: Iterable[Values]) -> bool:
    first, *others = channels
    return all(np.array_equal(first, other) for other in others)
