"""How many bits the samples of an image have, by its header alone: a file of 8 bits need not be read to learn that it has no 16."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tokenshards.pipeline.images.failures import JPEG_SIGNATURE
from tokenshards.pipeline.images.formats import PNG_SIGNATURE

__all__ = ["HEAD_BYTES", "bits_in_header"]

HEAD_BYTES = 1024
"""Bytes of one look. They hold the header of a PNG, and where a TIFF begins with its tags those too."""
_PNG_DEPTH = 24
_TIFF_LAYOUTS = {
    b"II*\0": ("<", "I", 4),
    b"MM\0*": (">", "I", 4),
    b"II+\0": ("<", "Q", 8),
    b"MM\0+": (">", "Q", 8),
}
"""Signature -> byte order, type of counts and offsets, place of the offset of the first tags; the last two are BigTIFF."""
_BITS_PER_SAMPLE, _SHORT = 258, 3

Ranges = Callable[[int, int], bytes]
"""Returns the bytes [start, stop) of a file, fewer at its end."""


def bits_in_header(ranges: Ranges) -> int | None:
    """Return the bits of the largest sample of a PNG, TIFF or JPEG; None for another format, or where the header does not tell.

    Reads HEAD_BYTES, and of a TIFF whose tags lie elsewhere HEAD_BYTES there, and once more where they only point at the value.
    """
    head = ranges(0, HEAD_BYTES)
    if head.startswith(JPEG_SIGNATURE):
        return 8
    if head.startswith(PNG_SIGNATURE):
        return head[_PNG_DEPTH] if len(head) > _PNG_DEPTH else None
    if head[:4] not in _TIFF_LAYOUTS:
        return None
    try:
        return _tiff_bits(head, ranges)
    except struct.error:  # the file ends too early
        return None


def _tiff_bits(head: bytes, ranges: Ranges) -> int | None:
    order, offset, place = _TIFF_LAYOUTS[head[:4]]
    width = struct.calcsize(offset)

    def bytes_at(start: int, size: int) -> bytes:
        return head[start : start + size] if start + size <= len(head) else ranges(start, start + size)

    (start,) = struct.unpack_from(order + offset, head, place)
    counter = "Q" if width == 8 else "H"
    after = struct.calcsize(counter)
    tags = bytes_at(start, HEAD_BYTES) if start + after > len(head) else head[start:]
    (count,) = struct.unpack_from(order + counter, tags)
    entry = 4 + 2 * width
    size = after + count * entry
    if size > HEAD_BYTES:  # hundreds of tags, or damage
        return None
    if len(tags) < size:
        tags = bytes_at(start, size)
    for number in range(count):
        at = after + number * entry
        tag, kind, values = struct.unpack_from(f"{order}HH{offset}", tags, at)
        if tag == _BITS_PER_SAMPLE and kind == _SHORT and 0 < values <= HEAD_BYTES // 2:
            found, value = tags, at + 4 + width
            if 2 * values > width:
                (value,) = struct.unpack_from(order + offset, tags, value)
                found, value = bytes_at(value, 2 * values), 0
            bits: tuple[int, ...] = struct.unpack_from(f"{order}{values}H", found, value)
            return max(bits)
        if tag >= _BITS_PER_SAMPLE:
            break
    return None
