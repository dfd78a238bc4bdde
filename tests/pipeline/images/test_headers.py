"""The bits of a sample by the header alone, against what the files were written with."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.images.test_image_rules import png16
from tests.pipeline.sources.zoo import encoded, noise
from tokenshards.pipeline.images.headers import HEAD_BYTES, bits_in_header


def ranges_of(data: bytes, asked: list[tuple[int, int]] | None = None) -> Callable[[int, int], bytes]:
    def ranges(start: int, stop: int) -> bytes:
        if asked is not None:
            asked.append((start, stop))
        return data[start:stop]

    return ranges


def tiff(bits: tuple[int, ...], *, order: str = "<", big: bool = False, behind: int = 0) -> bytes:
    """Return the header of a TIFF; its tags, and behind them the bits of the bands, begin `behind` bytes after the header."""
    offset, width, counter = ("Q", 8, "Q") if big else ("I", 4, "H")
    start = (16 if big else 8) + behind
    value_at = start + struct.calcsize(counter) + 2 * (4 + 2 * width)
    packed = struct.pack(f"{order}{len(bits)}H", *bits)
    value = packed.ljust(width, b"\0") if len(packed) <= width else struct.pack(order + offset, value_at)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HHQ", 8, 0, start) if big else struct.pack(order + "I", start)
    tags = struct.pack(order + counter, 2)
    tags += struct.pack(f"{order}HH{offset}", 256, 3, 1) + struct.pack(order + "H", 32).ljust(width, b"\0")
    tags += struct.pack(f"{order}HH{offset}", 258, 3, len(bits)) + value
    return head + bytes(behind) + tags + packed


@pytest.mark.parametrize("behind", [0, 980, 5000])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [(8,), (16,), (8, 8, 8), (16, 16, 16), (8, 8, 8, 8, 16)])
def test_tiff(bits: tuple[int, ...], order: str, big: bool, behind: int) -> None:
    data = tiff(bits, order=order, big=big, behind=behind)
    asked: list[tuple[int, int]] = []
    assert bits_in_header(ranges_of(data, asked)) == max(bits)
    assert len(asked) <= 3 and all(stop - start <= HEAD_BYTES for start, stop in asked)
    for size in range(0, len(data) - 2 * len(bits), 7):
        assert bits_in_header(ranges_of(data[:size])) in (None, max(bits)), "a file that ends too early tells nothing else"


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_files_as_pillow_writes_them(compression: str | None) -> None:
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    deep = io.BytesIO()
    Image.fromarray(grey).save(deep, "TIFF", compression=compression)
    assert bits_in_header(ranges_of(deep.getvalue())) == 16
    assert bits_in_header(ranges_of(encoded(noise((64, 64)), "TIFF", compression=compression))) == 8
    assert bits_in_header(ranges_of(png16(grey))) == 16
    assert bits_in_header(ranges_of(encoded(noise((8, 8)), "PNG"))) == 8
    assert bits_in_header(ranges_of(encoded(noise((8, 8)), "JPEG"))) == 8


@pytest.mark.parametrize(
    "data", [b"", b"P5 4 4 65535\n" + bytes(32), b"II*\0", b"II*\0\xff\xff\xff\xff", b"\x89PNG\r\n\x1a\n", b"II*\0" + b"\xff" * 2000]
)
def test_what_the_header_does_not_tell(data: bytes) -> None:
    assert bits_in_header(ranges_of(data)) is None
