"""Requests to any fsspec store except a local disk: one attempt each, with a time limit except for listings. `Store` makes the retries."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from tokenshards.pipeline.errors import TokenshardsError
from tokenshards.pipeline.storage.listing import Folder, Page
from tokenshards.pipeline.storage.local import ObjectInfo
from tokenshards.pipeline.storage.request_limit import status_of

__all__ = ["REQUEST_SECONDS", "Remote", "WebRemote", "remote_info"]

REQUEST_SECONDS = 600.0
"""Time limit of one request, even if bytes still trickle in; SLOWEST extends it for large objects."""
SLOWEST = 100_000
"""Bytes per second below which the transfer of an object counts as dead."""
_RANGE_NOT_SATISFIABLE = 416
_NOT_THERE = (404, 410)
_ARCHIVES = {"GLACIER", "DEEP_ARCHIVE"}


class Remote:
    """Requests that every fsspec store supports. Paths are the store's own names; `entries` are fsspec's info dictionaries."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs
        self.bound: dict[str, Any] = {"timeout": REQUEST_SECONDS} if getattr(fs, "async_impl", False) else {}

    def bound_of(self, size: int) -> dict[str, Any]:
        """Return the time limit of a request that transfers `size` bytes."""
        return {name: max(seconds, size / SLOWEST) for name, seconds in self.bound.items()}

    def read(self, full: str, start: int | None, end: int | None, *, size: int = 0) -> bytes:
        """Return an object, or the part of its range [start, end) that exists; `size` is its expected size, if known."""
        try:
            size = end - start if start is not None and end is not None else size
            return bytes(self.fs.cat_file(full, start=start, end=end, **self.bound_of(size)))
        except Exception as error:
            if start is not None and status_of(error)[0] == _RANGE_NOT_SATISFIABLE:
                return b""  # the object ends before `start`
            raise

    def write(self, full: str, data: bytes) -> None:
        """Put a whole object, then compare the stored size, and the MD5 if the store returns one, else all bytes."""
        self.fs.pipe_file(full, bytes(data), **self.bound_of(len(data)))  # `data` may be a mapped file
        entry = self.info(full)
        if entry["size"] != len(data):
            raise OSError(f"the store holds {entry['size']} bytes after a put of {len(data)}")
        stored_md5 = _stored_md5(entry)
        if stored_md5 is None:
            self.check_content(full, data)
        elif stored_md5 != hashlib.md5(data, usedforsecurity=False).digest():
            raise OSError(f"the stored object has the MD5 {stored_md5.hex()} after a put of {len(data)} bytes with another MD5")

    def check_content(self, full: str, data: bytes) -> None:
        """Raise OSError unless the store returns exactly these bytes."""
        seen = self.read(full, None, None, size=len(data))
        if memoryview(seen) != memoryview(data):
            raise OSError(f"the store returns {len(seen)} bytes that differ from the {len(data)} bytes put")

    def info(self, full: str) -> dict[str, Any]:
        """Return the entry of one object; raises FileNotFoundError if it does not exist."""
        entry: dict[str, Any] = self.fs.info(full, **self.bound)
        return entry

    def delete(self, full: str) -> None:
        """Remove one object."""
        self.fs.rm_file(full, **self.bound)

    def page(self, folder: Folder) -> Page:
        """List one folder; `Page.further` names its subfolders."""
        page = Page()
        for entry in self.fs.ls(folder.path, detail=True):  # no time limit: fsspec pages inside this call, and a large folder takes long
            if entry["type"] != "directory":
                page.entries.append(entry)
            elif entry["name"].strip("/") != folder.path.strip("/"):
                page.further.append(Folder(entry["name"], folder.depth + 1))
        return page

    def hopeless(self, error: Exception, path: str, where: str, attempt: int) -> TokenshardsError | None:
        """Return the error to raise if a retry cannot help, None if another attempt may succeed."""
        return None


class WebRemote(Remote):
    """Requests to web servers."""

    def info(self, full: str) -> dict[str, Any]:
        """Return the entry of one object; raises FileNotFoundError only if the server answers that it does not exist."""
        try:
            return super().info(full)
        except FileNotFoundError as error:  # fsspec raises this for every failure, even for an outage
            if isinstance(error.__cause__, Exception) and status_of(error)[0] not in _NOT_THERE:
                raise error.__cause__ from None
            raise


def _stored_md5(entry: dict[str, Any]) -> bytes | None:
    """Return the MD5 of an object from the entry of a Google or Azure store, None if the entry has none."""
    text = entry.get("md5Hash") or getattr(entry.get("content_settings"), "content_md5", None)
    if isinstance(text, str):
        return base64.b64decode(text)
    return bytes(text) if isinstance(text, bytes | bytearray) else None


def remote_info(path: str, entry: dict[str, Any]) -> ObjectInfo:
    """Return what an entry of fsspec says of an object."""
    size = int(entry.get("size") or 0)
    changed = entry.get("LastModified") or entry.get("mtime") or entry.get("created") or entry.get("last_modified")
    modified = changed.timestamp() if changed is not None and hasattr(changed, "timestamp") else float(changed or 0)
    etag = entry.get("ETag") or entry.get("etag") or entry.get("md5Hash")
    version = str(etag).strip('"') if etag else (f"{size}-{int(modified * 1e9)}" if modified else "")
    archived = entry.get("StorageClass") in _ARCHIVES
    return ObjectInfo(path, size, version, modified, entry.get("type", "file") == "file", archived)
