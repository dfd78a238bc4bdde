"""`quarantine --export`: the kept bytes of failed inputs as files, for a look with other programs.

Sample ids come from other people's data and are never file names: the number of a row and the first bytes of its input name a file.
`index.csv` says which input each file is. It is begun first, so that a folder of an interrupted export is known as ours.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenshards.pipeline.errors import ConfigError

__all__ = ["Export", "export_inputs", "sniff_extension"]

INDEX = "index.csv"
COLUMNS = ("file", "sample_id", "reason", "stage", "detail", "uri", "label")
_OURS = re.compile(r"[0-9]{6,}\.[a-z0-9]{2,4}")
_BEGINNINGS = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"\0\0\0\x0cJXL ", "jxl"),
    (b"\xff\x0a", "jxl"),
    (b"\0\0\0\x0cjP  ", "jp2"),
    (b"%PDF", "pdf"),
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"PAR1", "parq"),
    (b"version https://git-lfs", "lfs"),
)
_BRANDS = {b"avif": "avif", b"avis": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heic", b"isom": "mp4", b"mp42": "mp4"}


@dataclass(frozen=True, slots=True)
class Export:
    """What was put out: inputs with a file, and inputs whose bytes the quarantine does not keep."""

    folder: str
    files: int
    without_bytes: int


def export_inputs(rows: Iterable[dict[str, Any]], folder: str) -> Export:
    """Write the kept bytes of quarantine rows (with `data`) and their index to a local folder; an earlier export there is replaced.

    Raises ConfigError if the folder holds anything else.
    """
    place = Path(folder)
    _clear(place)
    files = without = 0
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / INDEX).open("w", encoding="utf-8", newline="", errors="backslashreplace") as text:
            index = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
            index.writeheader()
            text.flush()
            for number, row in enumerate(rows):
                data, name = row["data"], ""
                if data is not None:
                    name = f"{number:06d}.{sniff_extension(data)}"
                    (place / name).write_bytes(data)
                files, without = files + (data is not None), without + (data is None)
                index.writerow({**row, "file": name})
    except OSError as error:
        raise ConfigError(f"--export {folder}: cannot be written ({error.strerror}); expected a folder on a disk with room") from None
    return Export(str(place), files, without)


def sniff_extension(data: bytes) -> str:
    """Return the extension that fits how the bytes begin: that of an image or of another usual file, `txt` for text, else `bin`."""
    for beginning, name in _BEGINNINGS:
        if data.startswith(beginning):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "mp4")
    if data[257:262] == b"ustar":
        return "tar"
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "html"
    if head.startswith((b"<?xml", b"<svg")):
        return "xml"
    return "txt" if head and not re.search(rb"[^\t\n\r\x20-\x7e]", head) else "bin"


def _clear(place: Path) -> None:
    """Remove an earlier export; raise ConfigError if the folder is not that of an export."""
    try:
        names = sorted(path.name for path in place.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"--export {place}: {error.strerror}; expected a new or empty folder") from None
    if not names:
        return
    foreign = [name for name in names if name != INDEX and not _OURS.fullmatch(name)]
    if foreign or not _is_index(place / INDEX):
        odd = foreign[0] if foreign else names[0]
        raise ConfigError(
            f"--export {place}: the folder holds other files, such as {odd!r}; expected a new or empty folder, or that of an earlier export"
        )
    for name in names:
        (place / name).unlink()


def _is_index(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not path.is_symlink() and file.readline(200).decode("utf-8", "replace").strip() == ",".join(COLUMNS)
    except OSError:
        return False
