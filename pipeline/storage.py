"""A root on any fsspec store: whole objects in, whole objects out, with retries. Nothing here knows what an object means.

Objects are published whole: complete bytes in one put; on a local disk a temporary file, fsync and rename. Nothing relies on rename,
append, directories or conditional puts of a remote store.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.core import split_protocol

from pipeline.config import RetryConfig
from pipeline.errors import ConfigError, MissingObjectError, TransientStorageError

__all__ = ["ObjectInfo", "Store", "display_url"]

T = TypeVar("T")

TEMPORARY_PREFIX = ".tokenshards-tmp-"
_PERMANENT_ERRNO = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.EINVAL}


@dataclass(slots=True)  # not frozen, which would double the time that each of 10^8 objects takes to list
class ObjectInfo:
    """One listed object; `path` is relative to the store's root, with forward slashes."""

    path: str
    size: int
    version: str
    """etag, else `size-mtime_ns`; empty where the store tells neither."""
    modified_seconds: float
    """Unix time of the last change, 0 where unknown."""
    regular: bool = True
    """False for sockets, pipes, devices and broken links on a local disk."""


def display_url(url: str) -> str:
    """Return `url` without user, password and query, fit for messages, plans and logs."""
    protocol, rest = split_protocol(url)
    if protocol is None:
        return url
    rest = rest.split("?", 1)[0]
    host, slash, path = rest.partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


class Store:
    """Objects under one root URL or local path.

    Missing objects raise MissingObjectError; every other failure is retried with back-off and jitter and then raises
    TransientStorageError, because an outage must cost time, never data.
    """

    def __init__(self, url: str, *, storage_options: dict[str, Any] | None = None, retry: RetryConfig | None = None) -> None:
        self.location = str(url)
        """The URL as given; `url` is the form for messages."""
        self.url = display_url(str(url))
        self.storage_options = dict(storage_options or {})
        self.retry = retry or RetryConfig()
        protocol = split_protocol(str(url))[0]
        options = dict(self.storage_options)
        if protocol in ("s3", "s3a"):
            # A cached listing hides objects that other writers published since.
            options = {"use_listings_cache": False, "skip_instance_cache": True, **options}
        try:
            self.fs, root = fsspec.core.url_to_fs(str(url), **options)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{self.url}: this location cannot be opened ({error}); expected a path or a URL that fsspec knows") from None
        self.root = root.rstrip("/") or "/"
        self._prefix = f"{self.root.rstrip('/')}/"
        self.is_local = protocol in (None, "file", "local")

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def join(self, path: str) -> str:
        """Return the store's own name of the object at `path` below the root."""
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes of an object, or of its range [start, end)."""
        full = self.join(path)
        if self.is_local and start is None and end is None:
            return self._tried(path, "read", lambda: Path(full).read_bytes())
        return self._tried(path, "read", lambda: bytes(self.fs.cat_file(full, start=start, end=end)))

    def write(self, path: str, data: bytes) -> None:
        """Publish a whole object; readers see all of it or none of it. The size is read back from remote stores."""
        full = self.join(path)
        if self.is_local:
            self._tried(path, "write", lambda: _write_local(full, data))
            return

        def put() -> None:
            self.fs.pipe_file(full, data)
            seen = self.fs.info(full)["size"]
            if seen != len(data):
                raise OSError(f"the store holds {seen} bytes after a put of {len(data)}")

        self._tried(path, "write", put)

    def info(self, path: str) -> ObjectInfo | None:
        """Return what the store knows of one object, None where there is none."""
        full = self.join(path)
        try:
            if self.is_local:
                return self._tried(path, "stat", lambda: _local_info(path, full))
            return _remote_info(path, self._tried(path, "stat", lambda: self.fs.info(full)))
        except MissingObjectError:
            return None

    def delete(self, path: str) -> None:
        """Remove an object; a missing one is not an error."""
        full = self.join(path)
        try:
            self._tried(path, "delete", lambda: self.fs.rm_file(full))
        except MissingObjectError:
            return

    def list(self, prefix: str = "", *, temporary: bool = False) -> Iterator[ObjectInfo]:
        """Yield every object below the folder `prefix`, one folder in memory at a time, in no promised order.

        `temporary` includes the unfinished files that a killed writer may leave on a local disk.
        """
        if self.is_local:
            yield from self._list_local(prefix, temporary)
            return
        pending = [prefix]
        while pending:
            folder = pending.pop()
            full = self.join(folder)
            try:
                entries = self._tried(folder, "list", lambda full=full: self.fs.ls(full, detail=True))  # type: ignore[misc]
            except MissingObjectError:
                continue
            for entry in entries:
                path = self._relative(entry["name"])
                if entry["type"] == "directory":
                    if path != folder:
                        pending.append(path)
                elif path and path != folder:
                    yield _remote_info(path, entry)

    def _relative(self, name: str) -> str:
        start = self._prefix
        if name.startswith(start) and name[-1] != "/" and name[len(start)] != "/":
            return name[len(start) :]
        root = self.root.strip("/")
        name = name.strip("/")
        return name[len(root) :].lstrip("/") if root and name.startswith(root) else name

    def _list_local(self, prefix: str, temporary: bool) -> Iterator[ObjectInfo]:
        pending = [prefix]
        seen: set[tuple[int, int]] = set()
        while pending:
            folder = pending.pop()
            try:
                entries = os.scandir(self.join(folder))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise TransientStorageError(
                    f"{self.join(folder)}: cannot be listed ({error}); check its permissions and try again"
                ) from None
            with entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if _is_folder(entry):
                        if entry.is_symlink():  # only links can lead in circles
                            if _leads_back(entry.path):
                                continue
                            status = entry.stat()
                            if (status.st_dev, status.st_ino) in seen:
                                continue
                            seen.add((status.st_dev, status.st_ino))
                        pending.append(path)
                    elif temporary or not entry.name.startswith(TEMPORARY_PREFIX):
                        yield _local_info(path, entry.path, missing_ok=True)

    def _tried(self, path: str, verb: str, operation: Callable[[], T]) -> T:
        where = display_url(self.fs.unstrip_protocol(self.join(path))) if not self.is_local else self.join(path)
        for attempt in range(1, self.retry.attempts + 1):
            try:
                return operation()
            except FileNotFoundError:
                raise MissingObjectError(path, place=where) from None
            except NotADirectoryError:
                raise MissingObjectError(
                    path, f"cannot {verb} it, because a part of its path is a file; expected a folder", place=where
                ) from None
            except (MissingObjectError, TypeError, AttributeError, KeyError, AssertionError):
                raise
            except Exception as error:  # clients of stores raise their own types for the same outages
                if self.is_local and isinstance(error, OSError) and error.errno in _PERMANENT_ERRNO:
                    detail = f"cannot be opened as a file ({os.strerror(error.errno)})"
                    raise MissingObjectError(path, detail, place=where) from None
                if attempt == self.retry.attempts:
                    raise TransientStorageError(
                        f"{where}: could not {verb} it in {attempt} attempts; last error: {type(error).__name__}: {error}. "
                        "Check the store, the network and the credentials, then run the command again: it continues"
                    ) from error
                delay = min(self.retry.max_delay_seconds, self.retry.first_delay_seconds * 2 ** (attempt - 1))
                time.sleep(delay * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")


def _write_local(full: str, data: bytes) -> None:
    target = Path(full)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        handle = open(temporary, "xb")
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = open(temporary, "xb")
    try:
        with handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut before anything refers to the object
    finally:
        os.close(folder)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: no folder, and whoever opens it will say what it is
        return False


def _leads_back(link: str) -> bool:
    """True where a link names a folder that it lies in: what is there is listed already, under shorter names."""
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath((target, place)) == target


def _local_info(path: str, full: str, *, missing_ok: bool = False) -> ObjectInfo:
    try:
        status = os.stat(full)
    except OSError:
        if not missing_ok:
            raise
        return ObjectInfo(path, -1, "", 0.0, regular=False)
    version = f"{status.st_size}-{status.st_mtime_ns}"
    return ObjectInfo(path, status.st_size, version, status.st_mtime, regular=stat.S_ISREG(status.st_mode))


def _remote_info(path: str, entry: dict[str, Any]) -> ObjectInfo:
    size = int(entry.get("size") or 0)
    changed = entry.get("LastModified") or entry.get("mtime") or entry.get("created") or entry.get("last_modified")
    modified = changed.timestamp() if changed is not None and hasattr(changed, "timestamp") else float(changed or 0)
    etag = entry.get("ETag") or entry.get("etag") or entry.get("md5Hash")
    version = str(etag).strip('"') if etag else (f"{size}-{int(modified * 1e9)}" if modified else "")
    return ObjectInfo(path, size, version, modified, regular=entry.get("type", "file") == "file")
