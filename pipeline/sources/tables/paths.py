"""From a cell of a table to the place of an image: relative paths, --image-root, --path-template, and other systems' ways to write paths.

What a table may name is decided in hosts/uris.py, when an image is fetched; nothing here widens that.
"""

from __future__ import annotations

import base64
import binascii
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, SourceError, Stage, shorten
from tokenshards.pipeline.sources.hosts.uris import locate, resolve_uri
from tokenshards.pipeline.storage.store import Store, is_absolute

__all__ = ["Places", "decoded_cell", "filled", "looks_encoded", "partition_of"]

_FILE_URL = "file://"
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_SPECIAL = re.compile(r"[\\:]|//|\./|[^\x00-\x7f]|^/|/$|/\.$|^\.\.?$")
"""What a plain relative path does not hold."""
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A", "AAAA")
"""Base64 of the first bytes of JPEG, PNG, GIF, WebP, BMP, TIFF, and of HEIF and AVIF."""
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}\s*")
LEAST_BASE64 = 60


class Places:
    """The places that the cells of one table name."""

    def __init__(self, store: Store, table: str, config: SourceConfig) -> None:
        self._store, self._table = store, table
        self.root = _root(store, config)
        """What --image-root says: a path below the source, an absolute path or a URL; None without the option."""
        folder = posixpath.dirname(table) if self.root is None else self.root
        self._base = f"{folder.rstrip('/')}/" if folder else ""
        self.backslashes = 0
        """Number of paths whose backslashes were taken as separators."""

    def resolve(self, uri: str) -> str:
        """Return the place of a cell: a path below the source, an absolute path, or a URL; empty if the cell is."""
        if uri and _SPECIAL.search(uri) is None:
            return self._base + uri
        return self._resolve(uri) if uri else ""

    def within_root(self, place: str) -> bool:
        """Return whether a place lies below the folder of --image-root."""
        return bool(self.root) and place.startswith(self._base)

    def _resolve(self, uri: str) -> str:
        if uri.startswith(_FILE_URL):
            path = uri.removeprefix(_FILE_URL)
            return path if path.startswith("/") and self._exists(path) else _path_of_file_url(uri)
        if "://" in uri:
            return uri
        place = self._join(uri)
        if "\\" in uri and uri[0] not in "\\/" and not self._exists(place):
            self.backslashes += 1
            place = self._join(uri.replace("\\", "/"))
        return place if place.isascii() else self._in_another_form(place)

    def _join(self, uri: str) -> str:
        if self.root is None or uri.startswith("/"):
            return resolve_uri(self._store, self._table, uri)
        scheme, separator, rest = self._base.partition("://")
        if separator:  # `..` does not leave the host or bucket
            host, _, folder = rest.partition("/")
            return f"{scheme}://{host}{posixpath.normpath(posixpath.join('/', folder, uri))}"
        if is_absolute(self._base):
            return posixpath.normpath(posixpath.join(self._base, uri))
        return resolve_uri(self._store, f"{self._base}x", uri)

    def _exists(self, place: str) -> bool:
        if not self._store.is_local or "://" in place:
            return False
        try:
            return os.path.lexists(place if place.startswith("/") else self._store.join(place))
        except ValueError:  # a NUL: not a valid file name
            return False

    def _in_another_form(self, place: str) -> str:
        """Return the path in the form of Unicode in which it exists: macOS writes names in pieces (NFD), others whole (NFC)."""
        if not self._store.is_local or self._exists(place):
            return place
        others = [unicodedata.normalize(form, place) for form in ("NFC", "NFD")]
        found = ""
        for names in zip(place.split("/"), *(other.split("/") for other in others), strict=True):  # each folder may have its own form
            found += next((name for name in names if self._exists(found + name)), names[0]) + "/"
        return next((other for other in (*others, found[:-1]) if self._exists(other)), place)


def filled(template: Sequence[tuple[str, str | None]], values: Sequence[Any]) -> str:
    """Return the path that a --path-template makes of the values of its columns; empty if one of them is."""
    parts, given = [], iter(values)
    for text, name in template:
        parts.append(text)
        if name is not None:
            value = next(given)
            if value is None or value == "":
                return ""
            parts.append(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))
    return "".join(parts)


def looks_encoded(cells: Sequence[Any]) -> bool:
    """Return whether the first cells of a column hold images as text: base64, or data: URIs."""
    texts = [cell for cell in cells if isinstance(cell, str) and cell][:8]
    return sum(_is_encoded(text) for text in texts) * 2 > len(texts)


def decoded_cell(text: str) -> bytes | None:
    """Return the bytes of a data: URI or of base64; None if the text is neither. Raises BadInput for a damaged one."""
    if text.startswith("data:"):
        head, comma, body = text[5:].partition(",")
        if not comma:
            raise BadInput(Reason.BAD_URI, f"{shorten(text)} is a data: URI without a comma; expected data:image/png;base64,…", Stage.FETCH)
        return _from_base64(unquote(body)) if head.lower().endswith(";base64") else unquote_to_bytes(body)
    return _from_base64(text) if _is_encoded(text) else None


def partition_of(path: str) -> dict[str, str | None]:
    """Return the columns that the folders of a path give, as Hive and Spark write them: `label=cat/part-0.parquet`."""
    return dict(_pairs(path.split("/")[:-1]))


def _pairs(folders: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    for folder in folders:
        name, equals, value = folder.partition("=")
        if equals and name:
            yield unquote(name), None if value in (_NULL_PARTITION, "") else unquote(value)


def _is_encoded(text: str) -> bool:
    if text.startswith("data:"):
        return True
    return len(text) >= LEAST_BASE64 and text.startswith(_BASE64_STARTS) and _BASE64.fullmatch(text[:400].replace("\n", "")) is not None


def _from_base64(text: str) -> bytes:
    compact = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(Reason.BAD_URI, f"{shorten(text)} is not base64 ({error}); expected an encoded image file", Stage.FETCH) from None


def _path_of_file_url(uri: str) -> str:
    host, slash, path = uri.removeprefix(_FILE_URL).partition("/")
    if host not in ("", "localhost"):
        return uri
    return unquote(f"{slash}{path}")


def _root(store: Store, config: SourceConfig) -> str | None:
    if config.image_root is None:
        return None
    root = config.image_root if config.image_root == "/" else config.image_root.rstrip("/")
    if is_absolute(root):
        if store.is_local and root.startswith(_FILE_URL):
            root = _path_of_file_url(root)
        try:
            locate(store, f"{root}/x", config)
        except BadInput as error:
            raise SourceError(f"--image-root is {shorten(root)}: {error.detail}") from None
        below = f"{store.root.rstrip('/')}/"
        return root.removeprefix(below) if store.is_local and root.startswith(below) else "" if root == store.root else root
    place = posixpath.normpath(root)
    if store.is_local and not os.path.isdir(store.join(place)):
        here = f"; it is below the present folder, so give {os.path.abspath(root)}" if os.path.isdir(root) else ""
        raise SourceError(f"--image-root is {shorten(root)}: there is no such folder below {store.root}, where it begins{here}")
    if place.startswith("../"):
        return (
            posixpath.normpath(store.join(place))
            if store.is_local
            else str(store.fs.unstrip_protocol(posixpath.normpath(store.join(place))))
        )
    return "" if place == "." else place
