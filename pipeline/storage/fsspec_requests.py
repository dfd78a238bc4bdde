"""Requests to any fsspec store that is not a local disk: one attempt each, bounded in time but for listings. Retries are the Store's."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from tokenshards.pipeline.errors import TokenshardsError
from tokenshards.pipeline.storage.listing import Folder, Page
from tokenshards.pipeline.storage.request_limit import status_of

__all__ = ["REQUEST_SECONDS", "Remote", "WebRemote"]

REQUEST_SECONDS = 600.0
"""An upper bound for one request, whatever trickles in meanwhile; for large objects see SLOWEST."""
SLOWEST = 100_000
"""Bytes per second below which the transfer of an object counts as dead."""
_RANGE_NOT_SATISFIABLE = 416
_NOT_THERE = (404, 410)


class Remote:
    """What every fsspec store can do. Paths are the store's own names, `entries` what fsspec calls info dictionaries."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs
        self.bound: dict[str, Any] = {"timeout": REQUEST_SECONDS} if getattr(fs, "async_impl", False) else {}

    def bound_of(self, size: int) -> dict[str, Any]:
        """Return the bound of a request that moves so many bytes."""
        return {name: max(seconds, size / SLOWEST) for name, seconds in self.bound.items()}

    def read(self, full: str, start: int | None, end: int | None, *, size: int = 0) -> bytes:
        """Return an object, or its range [start, end) as far as it goes; `size` is what is expected of a whole one, where that is known."""
        try:
            size = end - start if start is not None and end is not None else size
            return bytes(self.fs.cat_file(full, start=start, end=end, **self.bound_of(size)))
        except Exception as error:
            if start is not None and status_of(error)[0] == _RANGE_NOT_SATISFIABLE:
                return b""  # it ends before `start`
            raise

    def write(self, full: str, data: bytes) -> None:
        """Put a whole object and compare what the store then holds: its size, and its MD5 where the store tells one, else its bytes."""
        self.fs.pipe_file(full, bytes(data), **self.bound_of(len(data)))  # of a mapped file too
        entry = self.info(full)
        if entry["size"] != len(data):
            raise OSError(f"the store holds {entry['size']} bytes after a put of {len(data)}")
        told = _md5_told(entry)
        if told is None:
            self.check_content(full, data)
        elif told != hashlib.md5(data, usedforsecurity=False).digest():
            raise OSError(f"the MD5 of what the store holds is {told.hex()} after a put of {len(data)} bytes with another")

    def check_content(self, full: str, data: bytes) -> None:
        """Raise OSError unless the store gives back exactly these bytes."""
        seen = self.read(full, None, None, size=len(data))
        if memoryview(seen) != memoryview(data):
            raise OSError(f"the store gives back other bytes ({len(seen)}) than were put ({len(data)})")

    def info(self, full: str) -> dict[str, Any]:
        """Return the entry of one object; FileNotFoundError where there is none."""
        entry: dict[str, Any] = self.fs.info(full, **self.bound)
        return entry

    def delete(self, full: str) -> None:
        """Remove one object."""
        self.fs.rm_file(full, **self.bound)

    def page(self, folder: Folder) -> Page:
        """List one folder; its folders are further ones to list."""
        page = Page()
        for entry in self.fs.ls(folder.path, detail=True):  # not bounded: it pages inside, for as long as the folder is large
            if entry["type"] != "directory":
                page.entries.append(entry)
            elif entry["name"].strip("/") != folder.path.strip("/"):
                page.further.append(Folder(entry["name"], folder.depth + 1))
        return page

    def hopeless(self, error: Exception, path: str, where: str, attempt: int) -> TokenshardsError | None:
        """Return what to raise instead of trying again, None where another attempt may succeed."""
        return None


class WebRemote(Remote):
    """A web server."""

    def info(self, full: str) -> dict[str, Any]:
        """Return the entry of one object; FileNotFoundError where the server says that there is none."""
        try:
            return super().info(full)
        except FileNotFoundError as error:  # what fsspec makes of every failure, an outage as well
            if isinstance(error.__cause__, Exception) and status_of(error)[0] not in _NOT_THERE:
                raise error.__cause__ from None
            raise


def _md5_told(entry: dict[str, Any]) -> bytes | None:
    """Return the MD5 that Google's and Azure's stores keep of an object."""
    text = entry.get("md5Hash") or getattr(entry.get("content_settings"), "content_md5", None)
    if isinstance(text, str):
        return base64.b64decode(text)
    return bytes(text) if isinstance(text, bytes | bytearray) else None
