"""Formats that Pillow reads only with a plug-in, which an extra of this package installs: HEIC (`heif`) and JPEG XL (`jxl`)."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version

__all__ = [
    "EXTRA_FORMATS",
    "extra_of_bytes",
    "extra_versions",
    "installed_extras",
    "is_heif",
    "is_jxl",
    "jxl_size",
    "missing_extras",
    "needs_extra",
]

_HEIF, _JXL = "heif", "jxl"
_NAMES = {_HEIF: "HEIC", _JXL: "JPEG XL"}
_PACKAGES = {_HEIF: "pillow-heif", _JXL: "pillow-jxl-plugin"}
EXTRA_FORMATS = {_HEIF: (".heic", ".heics", ".heif", ".heifs", ".hif"), _JXL: (".jxl",)}
"""Extra -> extensions of the files that it reads."""
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_JXL_CODESTREAM, _JXL_CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


@cache
def installed_extras() -> frozenset[str]:
    """Teach Pillow the formats of the installed extras, with one decoding thread each, and return the extras."""
    found = set()
    with contextlib.suppress(ImportError):  # not installed, or its library does not load here
        heif = importlib.import_module("pillow_heif")
        heif.register_heif_opener(thumbnails=False, decode_threads=1)
        found.add(_HEIF)
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")
        plugin = vars(importlib.import_module("pillow_jxl.JpegXLImagePlugin"))
        plugin["DECODE_THREADS"] = 0  # all cores otherwise, in each worker
        found.add(_JXL)
    return frozenset(found)


def extra_versions() -> list[str]:
    """Return package and version of each installed extra, such as `pillow-heif 1.0`."""
    names = []
    for extra in sorted(installed_extras()):
        with contextlib.suppress(PackageNotFoundError):
            names.append(f"{_PACKAGES[extra]} {version(_PACKAGES[extra])}")
    return names


def missing_extras(extensions: Iterable[str]) -> dict[str, list[str]]:
    """Return extra -> those of the file extensions that it would read, for the extras that are not installed."""
    wanted = set(extensions)
    found = {extra: sorted(wanted.intersection(kinds)) for extra, kinds in EXTRA_FORMATS.items() if extra not in installed_extras()}
    return {extra: kinds for extra, kinds in found.items() if kinds}


def extra_of_bytes(data: bytes) -> str | None:
    """Return the extra that an image needs and that is not installed, else None."""
    if is_heif(data):
        extra = _HEIF
    elif is_jxl(data):
        extra = _JXL
    else:
        return None
    return None if extra in installed_extras() else extra


def needs_extra(extra: str, kinds: Iterable[str] = ()) -> str:
    """Return what an extra would read, and its name; `kinds` are extensions of the files. It names no place of this host."""
    what = f"{', '.join(kinds)} files" if kinds else f"{_NAMES[extra]} images"
    return f"{what} cannot be read without {_PACKAGES[extra]}, the extra tokenshards[{extra}]"


def is_heif(data: bytes) -> bool:
    """Return whether bytes begin as HEIC does."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def is_jxl(data: bytes) -> bool:
    """Return whether bytes begin as JPEG XL does."""
    return data.startswith((_JXL_CODESTREAM, _JXL_CONTAINER))


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height that the header of a JPEG XL states, None without a header.

    The plug-in decodes the whole image when it opens it, so we must know the size before.
    """
    start = _codestream(data)
    if start is None:
        return None
    bits = _bits(data[start + 2 : start + 16])
    small = _take(bits, 1)

    def side() -> int:
        return 8 * (_take(bits, 5) + 1) if small else 1 + _take(bits, (9, 13, 18, 30)[_take(bits, 2)])

    height = side()
    ratio = _take(bits, 3)
    if not ratio:
        return side(), height
    across, down = _RATIOS[ratio]
    return height * across // down, height


def _codestream(data: bytes) -> int | None:
    """Return where the codestream begins."""
    if data.startswith(_JXL_CODESTREAM):
        return 0
    at = 0
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = at + 8
        if length == 1:
            length, body = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        if kind in (b"jxlc", b"jxlp"):
            body += 4 * (kind == b"jxlp")  # the number of the part
            return body if data[body : body + 2] == _JXL_CODESTREAM else None
        if length < 8:
            return None
        at += length
    return None


def _bits(data: bytes) -> Iterator[int]:
    return (byte >> place & 1 for byte in data for place in range(8))


def _take(bits: Iterator[int], count: int) -> int:
    return sum(next(bits, 0) << place for place in range(count))
