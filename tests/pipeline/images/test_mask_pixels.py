"""Masks: what files hold, what is stored, and the cut that fits a view. H and W: pixels of the source; S: side of a view."""

from __future__ import annotations

import io
import math
import struct
import zlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tokenshards.pipeline.errors import BadInput, Reason
from tokenshards.pipeline.images.mask_pixels import cut_mask, decode_mask, raw_mask, stored_values
from tokenshards.pipeline.images.views import decode_views
from tokenshards.pipeline.mask_rules import MaskRules
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.view_policy import ViewPolicy

WIDTH, HEIGHT = 37, 23
CLASSES = np.add.outer(np.arange(HEIGHT) // 5, np.arange(WIDTH) // 9).astype(np.uint8)
"""[H, W], 0 to 8."""


def encoded(pixels: Any, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def palette_image(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values).convert("L").copy()
    paletted = Image.frombytes("P", image.size, image.tobytes())
    paletted.putpalette([(7 * number) % 256 for number in range(768)])
    return paletted


def raw(data: bytes, *, turned: bool = True) -> np.ndarray:
    return np.asarray(raw_mask(data, max_pixels=1 << 20, turned=turned))


def refusal(data: bytes) -> str:
    with pytest.raises(BadInput) as caught:
        decode_mask(data, (WIDTH, HEIGHT), MaskRules(mask_bits=8), ignore=255, max_pixels=1 << 20, turned=True)
    assert caught.value.reason is Reason.BAD_MASK
    return caught.value.detail


PNG_DEPTHS = {1: (CLASSES > 3).astype(np.uint8), 2: CLASSES % 4, 4: CLASSES, 8: CLASSES * 20}


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of few bits, which Pillow does not write: rows of packed samples."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    per_byte = 8 // bits
    padded = np.zeros((height, -(-width // per_byte) * per_byte), np.uint8)
    padded[:, :width] = values
    shifts = np.arange(per_byte)[::-1] * bits
    rows = (padded.reshape(height, -1, per_byte) << shifts).sum(axis=2).astype(np.uint8)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", PNG_DEPTHS)
def test_grey_samples_of_few_bits_are_numbers_not_shades(bits: int) -> None:
    np.testing.assert_array_equal(raw(grey_png(PNG_DEPTHS[bits], bits)), PNG_DEPTHS[bits])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_the_index_of_a_palette_is_the_class(kind: str) -> None:
    np.testing.assert_array_equal(raw(encoded(palette_image(CLASSES), kind)), CLASSES)


def test_every_lossless_form_gives_its_numbers() -> None:
    deep = CLASSES.astype(np.uint16) * 700
    wide = CLASSES.astype(np.int32) * 70_000 - 5
    np.testing.assert_array_equal(raw(encoded(deep)), deep)
    np.testing.assert_array_equal(raw(encoded(deep, "TIFF")), deep)
    np.testing.assert_array_equal(raw(encoded(wide, "TIFF")), wide)
    for kind, options in (("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("PPM", {}), ("TGA", {}), ("WEBP", {"lossless": True})):
        pixels = np.stack([CLASSES] * 3, axis=2) if kind == "WEBP" else CLASSES
        np.testing.assert_array_equal(raw(encoded(pixels, kind, **options)), CLASSES, err_msg=kind)
    np.testing.assert_array_equal(raw(encoded((CLASSES > 3), mode="1")), CLASSES > 3)


def test_equal_channels_are_one_channel() -> None:
    grey = np.stack([CLASSES] * 3, axis=2)
    opaque = np.concatenate([grey, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], axis=2)
    for pixels in (grey, opaque):
        np.testing.assert_array_equal(raw(encoded(pixels)), CLASSES)
    np.testing.assert_array_equal(raw(encoded(opaque[..., 2:], mode=None)), CLASSES)  # LA
    opaque[0, 0, 3] = 254
    assert "alpha channel that is not opaque everywhere (mode RGBA)" in refusal(encoded(opaque))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(CLASSES, "JPEG"), "the mask is a JPEG, whose compression may change class numbers; expected one channel"),
        (encoded(np.stack([CLASSES] * 3, axis=2), "WEBP"), "the mask is a WEBP, whose"),
        (encoded(CLASSES, "TIFF", compression="jpeg"), "the mask is a TIFF compressed as jpeg"),
        (encoded(CLASSES, "JPEG2000"), "the mask is a JPEG2000"),
        (encoded(np.stack([CLASSES, CLASSES, CLASSES + 1], axis=2)), "a colour image (mode RGB, 9 colours)"),
        (encoded(CLASSES.astype(np.float32), "TIFF"), "of mode F; expected one channel"),
        (encoded(CLASSES)[:60], "the mask cannot be read: "),
        (b"no image at all", "the mask cannot be read: no decoder knows it"),
        (b"", "the mask cannot be read: the file has 0 bytes"),
        (encoded(CLASSES[:-1]), "the mask has 37 x 22 pixels, its image 37 x 23; expected the same size"),
        (encoded(CLASSES.T.copy()), "23 x 37 pixels, its image 37 x 23; expected the same size; it would fit if the image were not turned"),
        (encoded(CLASSES.astype(np.uint16) + 300), "holds the value 300; expected class numbers from 0 to 254, or 255"),
    ],
)
def test_what_is_no_mask_is_refused_with_what_was_seen(data: bytes, words: str) -> None:
    assert words in refusal(data)


def test_too_many_pixels_are_refused_unread() -> None:
    with pytest.raises(BadInput, match="37 x 23 pixels; expected at most 100 "):
        raw_mask(encoded(CLASSES), max_pixels=100, turned=True)


def test_values_are_stored_as_the_rules_say() -> None:
    values = np.array([[0, 7, 254], [255, 300, 65535]], np.uint16)
    stored = stored_values(values, MaskRules(mask_bits=16), 65535)
    assert stored.dtype == np.uint16 and stored.tolist() == values.tolist()
    eight = MaskRules(mask_bits=8, mask_ignore=(65535, 7), mask_map=((300, 1), (255, 2)))
    stored = stored_values(values, eight, 255)
    assert stored.dtype == np.uint8 and stored.tolist() == [[0, 255, 254], [2, 1, 255]]
    signed = stored_values(np.array([[-1, 4]]), MaskRules(mask_bits=8, mask_ignore=(-1,)), 255)
    assert signed.tolist() == [[255, 4]]
    with pytest.raises(BadInput, match=r"the value -1; .* --mask-ignore -1 makes such pixels ones without a class, --mask-map -1=N"):
        stored_values(np.array([[-1, 4]]), MaskRules(mask_bits=8), 255)
    with pytest.raises(BadInput, match="the value 300; .*--mask-bits 16 stores numbers up to 65,534"):
        stored_values(values, MaskRules(mask_bits=8, mask_ignore=(65535,)), 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_with_an_orientation_of_its_own_is_turned(orientation: int) -> None:
    image = Image.fromarray(CLASSES)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = encoded(image, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))))
    np.testing.assert_array_equal(raw(turned), expected)
    np.testing.assert_array_equal(raw(turned, turned=False), CLASSES)


# A view shows a box of the upright image. Below, boxes are computed anew with exact fractions, and classes are read pixel by pixel.


def usual_box(width: int, height: int, preprocess: Preprocess) -> tuple[Fraction, ...]:
    size = preprocess.size
    if preprocess.short_side is not None:  # torchvision: Resize(short_side), CenterCrop(size)
        short = min(width, height)
        new = [int(preprocess.short_side * side / short) for side in (width, height)]
        first = [round((side - size) / 2) for side in new]
        return tuple(Fraction(place * old, now) for place, old, now in zip(first, (width, height), new, strict=True)) + tuple(
            Fraction(size * old, now) for old, now in zip((width, height), new, strict=True)
        )
    if preprocess.resize == "crop":
        side = min(width, height)
        return Fraction(width - side, 2), Fraction(height - side, 2), Fraction(side), Fraction(side)
    return Fraction(0), Fraction(0), Fraction(width), Fraction(height)


def slow_cut(mask_HW: np.ndarray, box: tuple[Fraction, ...], size: int, mirrored: bool) -> np.ndarray:
    left, top, width, height = box
    found = np.zeros((size, size), mask_HW.dtype)
    for y in range(size):
        for x in range(size):
            column = math.floor(left + (Fraction(x) + Fraction(1, 2)) * width / size)
            row = math.floor(top + (Fraction(y) + Fraction(1, 2)) * height / size)
            found[y, size - 1 - x if mirrored else x] = mask_HW[min(row, mask_HW.shape[0] - 1), min(column, mask_HW.shape[1] - 1)]
    return found


POLICIES = {
    "squash": Preprocess(size=16, resize="squash"),
    "crop": Preprocess(size=16, resize="crop"),
    "crop, enlarged": Preprocess(size=64, resize="crop"),
    "short side": Preprocess(size=16, resize="crop", short_side=20, decode_mode="full"),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("size", [(37, 23), (23, 37), (40, 40), (200, 21)])
def test_a_pixel_is_the_class_under_its_middle(name: str, size: tuple[int, int]) -> None:
    preprocess, (width, height) = POLICIES[name], size
    mask_HW = np.random.default_rng(0).integers(0, 255, (height, width)).astype(np.uint8)
    found = decode_views(encoded(np.zeros((height, width, 3), np.uint8)), preprocess, ViewPolicy.parse("flip"), seed=0, sample_id="a")
    for box, mirrored in zip(found.boxes, found.mirrored, strict=True):
        cut = cut_mask(mask_HW, box, preprocess.size, mirrored=mirrored)
        np.testing.assert_array_equal(cut, slow_cut(mask_HW, usual_box(width, height, preprocess), preprocess.size, mirrored))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.booleans(), st.data())
def test_any_whole_box_is_cut_as_the_slow_reference_does(width: int, height: int, size: int, mirrored: bool, data: st.DataObject) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (left, top, data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top)))
    mask_HW = np.arange(width * height, dtype=np.uint16).reshape(height, width)
    cut = cut_mask(mask_HW, box, size, mirrored=mirrored)
    np.testing.assert_array_equal(cut, slow_cut(mask_HW, tuple(Fraction(value) for value in box), size, mirrored))


@pytest.mark.parametrize("policy", ["one", "flip", "ten-crop", "8"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_masks_and_images_are_cut_alike(policy: str, orientation: int, kind: str) -> None:
    """An image whose red and green rise with its column and row: a linear ramp stays one when it is resized, so colours tell places."""
    width, height, size = 240, 180, 32
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    upright = np.stack([columns, rows, np.full_like(rows, 99)], axis=2).astype(np.uint8)
    undo = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}[orientation]
    stored = Image.fromarray(upright) if undo is None else Image.fromarray(upright).transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    preprocess = Preprocess(size=size, resize="crop", filter="bilinear", exif_orientation=True)
    found = decode_views(data, preprocess, ViewPolicy.parse(policy), seed=3, sample_id="a/b.jpg")
    assert (found.width, found.height) == (width, height)
    inner = slice(2, size - 2)  # at the borders a filter sees fewer pixels on one side
    for pixels, box, mirrored in zip(found.pixels_VHWC, found.boxes, found.mirrored, strict=True):
        for channel, places in ((0, columns), (1, rows)):
            cut = cut_mask(places.astype(np.uint16), box, size, mirrored=mirrored)
            off = np.abs(cut.astype(int) - pixels[..., channel].astype(int))[inner, inner]
            assert off.max() <= (2 if kind == "PNG" else 5), (channel, box, mirrored)
