"""Objects on a local disk: publish by rename, list without cycles of links, version by size and modification time."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenshards.pipeline.errors import MissingObjectError, TokenshardsError, TransientStorageError

__all__ = ["TEMPORARY_PREFIX", "ObjectInfo", "errno_of", "final_error", "list_local", "local_info", "read_local", "write_local"]

TEMPORARY_PREFIX = ".tokenshards-tmp-"
_PERMANENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.EINVAL}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
"""Errors of some network file systems for the fsync of a folder; by then the file is written and renamed."""


@dataclass(slots=True)  # not frozen: that would double the time per object, and listings have up to 10^8 objects
class ObjectInfo:
    """One listed object; `path` is relative to the store's root, with forward slashes."""

    path: str
    size: int
    version: str
    """etag, else `size-mtime_ns`; empty if the store returns neither."""
    modified_seconds: float
    """Unix time of the last change, 0 if unknown."""
    regular: bool = True
    """False for sockets, pipes, devices and broken links on a local disk."""
    archived: bool = False
    """True for an object of S3 that must be restored before it can be read, as a listing tells."""


def read_local(full: str, start: int, end: int | None) -> bytes:
    """Return the range [start, end) of a file as far as it exists, without fsspec, which takes three times as long for a small range."""
    with open(full, "rb", buffering=0) as file:
        if start:
            file.seek(start)
        data = file.read() if end is None else file.read(end - start)
        while end is not None and len(data) < end - start and (more := file.read(end - start - len(data))):
            data += more
        return data


def write_local(full: str, data: bytes) -> None:
    """Publish a whole file: write a temporary file beside it, fsync, rename, fsync the folder. Missing folders are created."""
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
    _sync_folder(target.parent)


def _sync_folder(path: Path) -> None:
    """Make a rename survive a power cut before anything refers to the object, if the file system can sync folders."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(folder)


def list_local(root: str, prefix: str, temporary: bool, levels: int | None = None) -> Iterator[ObjectInfo]:
    """Yield every file below `root`/`prefix`, one folder in memory at a time; `temporary` includes unfinished files.

    `levels` limits the depth: a folder at that depth below `prefix` or deeper is not opened. Raises TransientStorageError for a folder
    that cannot be listed.
    """
    pending = [prefix]
    seen: set[tuple[int, int]] = set()
    while pending:
        folder = pending.pop()
        where = f"{root.rstrip('/')}/{folder}" if folder else root
        for entry in _entries(where):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if _is_folder(entry):
                if levels is not None and path.removeprefix(prefix).strip("/").count("/") + 1 >= levels:
                    continue
                if entry.is_symlink():  # only links can form cycles
                    if _leads_back(entry.path):
                        continue
                    status = entry.stat()
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                pending.append(path)
            elif temporary or not entry.name.startswith(TEMPORARY_PREFIX):
                yield local_info(path, entry.path, missing_ok=True)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, none if it does not exist. A network disk may fail in the middle of the listing too."""
    try:
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            yield from entries
    except OSError as error:
        raise TransientStorageError(f"{folder}: cannot be listed ({error}); check its permissions and try again") from None


def local_info(path: str, full: str, *, missing_ok: bool = False) -> ObjectInfo:
    """Return size and version of a file. For a missing file raises OSError, or with `missing_ok` returns an info that is not regular."""
    try:
        status = os.stat(full)
    except OSError:
        if not missing_ok:
            raise
        return ObjectInfo(path, -1, "", 0.0, regular=False)
    version = f"{status.st_size}-{status.st_mtime_ns}"
    return ObjectInfo(path, status.st_size, version, status.st_mtime, regular=stat.S_ISREG(status.st_mode))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example a link to itself; opening it later gives the right error
        return False


def _leads_back(link: str) -> bool:
    """Return whether a link points to a folder that contains the link; that folder is listed already, under shorter names."""
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath((target, place)) == target


def errno_of(error: Exception) -> int:
    """Return the errno of an OSError, 0 for any other error."""
    return (error.errno or 0) if isinstance(error, OSError) else 0


def final_error(error: Exception, path: str, where: str, verb: str) -> TokenshardsError | None:
    """Return the error to raise if a retry cannot help, None if another attempt may succeed."""
    if isinstance(error, FileNotFoundError):
        return MissingObjectError(path, place=where)
    number = errno_of(error)
    if number in _DENIED:
        return TransientStorageError(
            f"{where}: no permission to {verb} it ({os.strerror(number)})",
            advice="Give this user the permission, then run the command again: it continues",
        )
    if number in _PERMANENT:
        return MissingObjectError(path, f"cannot be opened as a file ({os.strerror(number)})", place=where)
    return None
