"""Which image formats can be read here, and how Pillow opens bytes lazily within our limits."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from functools import cache

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from tokenshards.pipeline.images.extras import installed_extras
from tokenshards.pipeline.words import counted

__all__ = ["PNG_SIGNATURE", "deep_extensions", "describe_tiff", "image_extensions", "is_lfs_pointer", "open_lazily", "without_texts"]

# Formats that need an external program or a plug-in, or that Pillow can name but not load.
_UNREADABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_DEEP_FORMATS = {"PNG", "TIFF", "PPM", "JPEG2000", "JXL"}
"""Formats whose samples may have 16 bits here."""

_LFS_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
MAX_LFS_POINTER = 1024

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTING_TEXTS = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "float", 5: "complex signed", 6: "complex float"}


@cache
def _readable_formats() -> tuple[str, ...]:
    Image.preinit()  # puts the common formats first, so that Pillow does not try a dozen others before them
    Image.init()
    installed_extras()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in _UNREADABLE_FORMATS)


@cache
def image_extensions() -> frozenset[str]:
    """Return the file extensions that `decode_image` can open, in lower case with the dot, such as `.jpeg`."""
    return _extensions({*_readable_formats(), "MPO"})  # the JPEG plug-in opens MPO files


@cache
def deep_extensions() -> frozenset[str]:
    """Return the extensions of files that may have 16 bits a sample."""
    return _extensions(_DEEP_FORMATS.intersection(_readable_formats()))


def _extensions(formats: set[str]) -> frozenset[str]:
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def is_lfs_pointer(data: bytes) -> bool:
    """Return whether bytes are a pointer that Git LFS left in place of a file."""
    return data.startswith(_LFS_POINTERS) and len(data) <= MAX_LFS_POINTER


def open_lazily(data: bytes, max_pixels: int) -> Image.Image:
    """Return an image whose header alone is read. The caller compares its size with `max_pixels`."""
    try:
        return Image.open(io.BytesIO(data), formats=_readable_formats())
    except Image.DecompressionBombError:
        if max_pixels <= 2 * (Image.MAX_IMAGE_PIXELS or 0):
            raise
    return _open_unlimited(data)


def _open_unlimited(data: bytes) -> Image.Image:
    """Open as `Image.open` does, without Pillow's own limit, which is a global of the process."""
    for name in _readable_formats():
        factory, accepts = Image.OPEN[name]
        if accepts is not None and accepts(data[:16]) is not True:
            continue
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # `Image.open` takes these as "another format"
            return factory(io.BytesIO(data), "")
    raise UnidentifiedImageError("cannot identify image file")


def without_texts(data: bytes, *, keep_orientation: bool) -> bytes:
    """Return a PNG without colour profile and texts, which decide no pixel here; Pillow refuses those above 1 MiB.

    With `keep_orientation` the texts that may hold the EXIF orientation stay.
    """
    parts = [PNG_SIGNATURE]
    for kind, chunk in _png_chunks(data):
        orienting = keep_orientation and chunk[8:40].startswith(_ORIENTING_TEXTS)
        if not (kind == b"iCCP" or (kind in _PNG_TEXTS and not orienting)):
            parts.append(chunk)
    return b"".join(parts)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind of each chunk and the whole chunk; the last may be cut."""
    start = len(PNG_SIGNATURE)
    while start < len(data):
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], data[start:stop]
        start = stop


def describe_tiff(data: bytes) -> str | None:
    """Return bands, bits and sample format of a TIFF, such as `5 bands of 16 bits, unsigned`; None if its header cannot be read."""
    if not data.startswith(_TIFF_SIGNATURES):
        return None
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if b"+" in data[2:4] else data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        formats = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
        bands = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, len(bits))
        compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
    except Exception:  # any damage, which the caller describes in its own words
        return None
    if TiffImagePlugin.IMAGEWIDTH not in tags or TiffImagePlugin.IMAGELENGTH not in tags:
        return None
    depth = " and ".join(str(value) for value in sorted(set(bits)))
    kind = " and ".join(_SAMPLE_FORMATS.get(value, f"sample format {value}") for value in sorted(set(formats)))
    packed = "" if compression in TiffImagePlugin.COMPRESSION_INFO else f", compression {compression}"
    return f"{counted(bands, 'band')} of {depth} bits, {kind}{packed}"
