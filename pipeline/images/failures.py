"""Why the bytes of an image cannot be decoded: every error of Pillow becomes a permanent reason with what was seen."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from tokenshards.pipeline.errors import BadInput, Reason, shorten
from tokenshards.pipeline.images.extras import extra_of_bytes, is_heif, is_jxl, needs_extra
from tokenshards.pipeline.images.formats import PNG_SIGNATURE, describe_tiff, is_lfs_pointer

__all__ = ["JPEG_SIGNATURE", "TOO_MUCH_TEXT", "decoding", "failure_of", "first_bytes", "shown_bytes"]

JPEG_SIGNATURE, _GIF, _RIFF = b"\xff\xd8\xff", b"GIF8", b"RIFF"
_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIGNATURES = (JPEG_SIGNATURE, PNG_SIGNATURE, _GIF, _RIFF, b"BM", *_TIFFS, b"\0\0\0\x0cjP  ")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_UNIDENTIFIED = "no decoder knows it: its first bytes, or the header behind them, are those of no image"
"""In place of Pillow's words, which name an object of Python."""
TOO_MUCH_TEXT = ("Decompressed data too large", "Too much memory used in text chunks")
"""How Pillow's errors about texts and colour profiles above its limits begin."""


@contextmanager
def decoding(data: bytes) -> Iterator[None]:
    """Turn every error that an image's bytes cause into BadInput with a permanent reason; MemoryError passes through."""
    if not data:
        raise BadInput(Reason.EMPTY, "the file has 0 bytes")
    if is_lfs_pointer(data):
        raise BadInput(Reason.NOT_AN_IMAGE, f"a Git LFS pointer in place of the image: run `git lfs pull` there; {shown_bytes(data)}")
    try:
        with _quiet_pillow:
            yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # a plug-in may raise any type for hostile bytes, and only the bytes can be the cause
        raise failure_of(error, data) from error


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


def failure_of(error: Exception, data: bytes) -> BadInput:
    """Return the permanent failure that an error of Pillow means for these bytes."""
    text = _ADDRESS.sub("", str(error))  # equal inputs must give equal quarantine files
    said = text[:300] if type(error) is OSError and text else f"{type(error).__name__}: {text[:300]}"  # "OSError" says nothing of an image
    words = _UNIDENTIFIED if isinstance(error, UnidentifiedImageError) else said
    detail = f"{words}; {shown_bytes(data)}"
    if isinstance(error, Image.DecompressionBombError):
        return BadInput(Reason.TOO_MANY_PIXELS, detail)
    if text.startswith(TOO_MUCH_TEXT):
        return BadInput(Reason.DECOMPRESSION_BOMB, detail)
    if (extra := extra_of_bytes(data)) is not None:
        return BadInput(Reason.NO_DECODER, f"{needs_extra(extra)}; {shown_bytes(data)}")
    if isinstance(error, UnidentifiedImageError) and not (data.startswith(_SIGNATURES) or is_heif(data) or is_jxl(data)):
        return BadInput(Reason.NOT_AN_IMAGE, detail)
    if isinstance(error, UnidentifiedImageError | KeyError) and (seen := describe_tiff(data)) is not None:
        return BadInput(Reason.UNSUPPORTED_MODE, f"TIFF of {seen}; expected 1 to 4 bands of 8 or 16 bits, unsigned; {shown_bytes(data)}")
    if "truncated" in text.lower() or _lacks_its_end(data):
        return BadInput(Reason.TRUNCATED, detail)
    return BadInput(Reason.CORRUPT, detail)


def first_bytes(data: bytes) -> str:
    """Return the first bytes of a file as messages show them."""
    return shorten(data[:16])


def shown_bytes(data: bytes) -> str:
    """Return the number of bytes and the first of them."""
    return f"{len(data)} bytes that begin with {first_bytes(data)}"


def _lacks_its_end(data: bytes) -> bool:
    if data.startswith(JPEG_SIGNATURE):
        return b"\xff\xd9" not in data
    if data.startswith(PNG_SIGNATURE):
        return b"IEND" not in data
    if data.startswith(_GIF):
        return not data.endswith(b";")
    if data.startswith(_RIFF):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return False
