"""Objects on a local disk: published by rename, listed without falling into links, described by size and time of change."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenshards.pipeline.errors import MissingObjectError, TokenshardsError, TransientStorageError

__all__ = ["TEMPORARY_PREFIX", "ObjectInfo", "errno_of", "final_error", "list_local", "local_info", "write_local"]

TEMPORARY_PREFIX = ".tokenshards-tmp-"
_PERMANENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.EINVAL}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
"""What some network file systems answer to an fsync of a folder; the file itself is written and renamed by then."""


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


def write_local(full: str, data: bytes) -> None:
    """Publish a file whole: a temporary one beside it, fsync, rename, fsync of the folder; folders are made if need be."""
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
    """Make a rename survive a power cut before anything refers to the object, where the file system can do that for folders."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(folder)


def list_local(root: str, prefix: str, temporary: bool, levels: int | None = None) -> Iterator[ObjectInfo]:
    """Yield every file below `root`/`prefix`, one folder in memory at a time; `temporary` includes unfinished ones.

    With `levels` no folder is opened that lies so many levels below `prefix` or more. Raises TransientStorageError for a folder that
    cannot be opened.
    """
    pending = [prefix]
    seen: set[tuple[int, int]] = set()
    while pending:
        folder = pending.pop()
        where = f"{root.rstrip('/')}/{folder}" if folder else root
        try:
            entries = os.scandir(where)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise TransientStorageError(f"{where}: cannot be listed ({error}); check its permissions and try again") from None
        with entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if _is_folder(entry):
                    if levels is not None and path.removeprefix(prefix).strip("/").count("/") + 1 >= levels:
                        continue
                    if entry.is_symlink():  # only links can lead in circles
                        if _leads_back(entry.path):
                            continue
                        status = entry.stat()
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    pending.append(path)
                elif temporary or not entry.name.startswith(TEMPORARY_PREFIX):
                    yield local_info(path, entry.path, missing_ok=True)


def local_info(path: str, full: str, *, missing_ok: bool = False) -> ObjectInfo:
    """Return what the disk knows of a file; one that is gone raises OSError, or with `missing_ok` is described as not regular."""
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
    except OSError:  # a link to itself, say: no folder, and whoever opens it will say what it is
        return False


def _leads_back(link: str) -> bool:
    """True where a link names a folder that it lies in: what is there is listed already, under shorter names."""
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath((target, place)) == target


def errno_of(error: Exception) -> int:
    """Return the errno of an error of the operating system, 0 of any other."""
    return (error.errno or 0) if isinstance(error, OSError) else 0


def final_error(error: Exception, path: str, where: str, verb: str) -> TokenshardsError | None:
    """Return what to raise for an error of a disk that another attempt cannot mend, None where one may."""
    if isinstance(error, FileNotFoundError):
        return MissingObjectError(path, place=where)
    number = errno_of(error)
    if number in _DENIED:
        return TransientStorageError(
            f"{where}: may not {verb} it ({os.strerror(number)})",
            advice="Give this user the right to, then run the command again: it continues",
        )
    if number in _PERMANENT:
        return MissingObjectError(path, f"cannot be opened as a file ({os.strerror(number)})", place=where)
    return None
