"""Bytes of planned inputs: bounded, checked against the plan, read ahead in order."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice, zip_longest
from typing import Any, TypeVar

from tokenshards.pipeline.activity import FETCH, doing
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import (
    BadInput,
    MissingObjectError,
    Reason,
    Stage,
    StoreAccessError,
    TransientStorageError,
    UnreadableObjectError,
    shorten,
)
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.source_store import HostStore, host_of
from tokenshards.pipeline.sources.table_uris import locate
from tokenshards.pipeline.storage.store import Store, readable
from tokenshards.pipeline.thread_map import map_in_order

__all__ = [
    "MAX_BYTES",
    "display_uri",
    "expected_bytes",
    "fetch_ahead",
    "fetch_file",
    "refuse_unmounted",
    "unreadable_input",
    "urls_to_probe",
]

R = TypeVar("R")
T = TypeVar("T")

MAX_BYTES = 256 << 20
"""Largest encoded image that is read, in bytes."""
AHEAD_BYTES = 256 << 20
"""Encoded images of one shard that are read before they are asked for, in bytes."""
UNKNOWN_BYTES = 4 << 20
"""What a URL of a table counts against that while it is on its way."""
PROBED_ROWS = 4096
URLS_OF_A_HOST = 16
ONE_SOURCE = SourceConfig()

_MISSING_ERRNO = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_MD5 = re.compile(r"[0-9a-f]{32}")


def fetch_file(
    store: Store, row: PlanRow, config: SourceConfig = ONE_SOURCE, *, others: Sequence[str] = (), max_bytes: int = MAX_BYTES
) -> bytes:
    """Return the bytes of a planned file below `store`, or at the absolute URL or local path that a table gave.

    A local file is opened once without ever blocking (a pipe is refused) and must have the planned size and time of change. A remote object
    costs one request: its length is always compared, and where the planned version is an MD5, as the etags of S3 mostly are, so is the
    content; only on a mismatch is the store asked again, since an etag of an encrypted object is no MD5. Other versions would
    cost a request per object and are not compared. An absolute URL is read with the options of `store` where both use one protocol;
    `others` are URLs of the same table, which may be asked for when its host fails.

    Raises BadInput at stage FETCH for permanent causes (missing, not a file, too large, changed since the plan, a URI that a table may not
    name or that names a bucket that is not there, and what cannot be read where `config.unreadable` allows that); UnreadableObjectError
    where it does not; other TransientStorageErrors when the store fails, or the bucket of the source is not there.
    """
    source, (store, path) = store, locate(store, row.path, config)
    if row.size > max_bytes:
        raise _too_large(row.size, max_bytes)
    try:
        with doing(FETCH, row.sample_id):
            if store.is_local:
                return _read_local(store, path, row, max_bytes)
            if isinstance(store, HostStore):
                return store.fetch(path, others, lambda host: _read_remote(host, path, row, max_bytes))
            return _read_remote(store, path, row, max_bytes)
    except MissingObjectError as error:
        raise BadInput(Reason.MISSING, readable(str(error)), Stage.FETCH) from None
    except StoreAccessError as error:
        if store is source or error.bad_name is None:
            raise
        raise BadInput(error.bad_name, readable(str(error)), Stage.FETCH) from None
    except UnreadableObjectError as error:
        raise unreadable_input(error, config, foreign=isinstance(store, HostStore)) from None


def unreadable_input(error: UnreadableObjectError, config: SourceConfig, *, foreign: bool = False) -> BadInput | UnreadableObjectError:
    """Return what to raise for an object that cannot be read: BadInput where it may be quarantined, else the error as it is."""
    allowed = config.unreadable or ("quarantine" if foreign else "stop")
    return BadInput(error.reason, readable(error.words), Stage.FETCH) if allowed == "quarantine" else error


def urls_to_probe(rows: Iterable[PlanRow]) -> list[str]:
    """Return some URLs that a table gave, of as many hosts as there are: when one host fails, others may be asked for theirs."""
    by_host: dict[str, list[str]] = {}
    for row in islice(rows, PROBED_ROWS):
        if row.path.startswith(("http://", "https://")):
            urls = by_host.setdefault(host_of(row.path), [])
            if len(urls) < URLS_OF_A_HOST:
                urls.append(row.path)
    return [url for urls in zip_longest(*by_host.values()) for url in urls if url is not None]


def fetch_ahead(
    rows: Iterable[R],
    fetch: Callable[[R], T],
    *,
    threads: int,
    ahead: int,
    size_of: Callable[[R], int] = lambda row: 0,
    budget_bytes: int = AHEAD_BYTES,
) -> Iterator[tuple[R, T | BadInput]]:
    """Yield (row, what `fetch` returns or BadInput) in the order of `rows`, at most `ahead` of them fetched before they are asked for.

    Nor are more fetched than fit in `budget_bytes` by `size_of`, unless one alone does not. `threads=0` fetches inline. Exceptions other
    than BadInput end the iteration at their row. Closing the generator drops what is queued and waits for the reads in flight.
    """

    def attempt(row: R) -> tuple[R, T | BadInput]:
        try:
            return row, fetch(row)
        except BadInput as bad:
            return row, bad

    if threads == 0:
        yield from map(attempt, rows)
        return

    def full(pending: Iterable[tuple[R, Future[tuple[R, T | BadInput]]]], row: R) -> bool:
        return _held(pending, size_of) + size_of(row) > budget_bytes

    yield from map_in_order(attempt, rows, threads=threads, ahead=max(0, ahead - 1), full=full)


def _held(pending: Iterable[tuple[R, Future[tuple[R, T | BadInput]]]], size_of: Callable[[R], int]) -> int:
    """Return the bytes that are read or will be: the real ones of what is there, those that are expected of what is on its way."""
    return sum(_size_of_result(future.result()[1]) if _is_read(future) else size_of(row) for row, future in pending)


def _is_read(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _size_of_result(result: object) -> int:
    return len(result) if isinstance(result, bytes) else 0


def expected_bytes(row: PlanRow) -> int:
    """Return the bytes that reading a file will hold, a guess where a table gave a URL."""
    return row.size if row.size >= 0 else UNKNOWN_BYTES


def display_uri(store: Store, path: str) -> str:
    """Return the place of `path` as quarantine rows have it; that of the root ends in a slash."""
    return store.place(path) if path else f"{store.place('').rstrip('/')}/"


def refuse_unmounted(store: Store, path: str) -> None:
    """Raise TransientStorageError where not this file alone is gone but the disk: its folder is not there, or only a mount point is."""
    if not os.path.isdir(store.root):
        raise TransientStorageError(
            f"{store.root}: the folder of the source is gone", advice="Mount or move it back, then run the command again: it continues"
        )
    folder = os.path.dirname(store.join(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        empty = not os.listdir(folder)
    except OSError:  # it may not be listed, so something is mounted
        return
    if empty:
        raise TransientStorageError(
            f"{folder}: this folder is empty, and planned inputs lie in it, such as {display_uri(store, path)}",
            advice="If a disk belongs there, mount it; if the inputs were deleted, remove the empty folder. Then run the command again",
        )


def _read_local(store: Store, path: str, row: PlanRow, max_bytes: int) -> bytes:
    where = store.join(path)
    try:
        handle = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a NUL, or text that no file name can hold
        raise BadInput(Reason.BAD_URI, f"{shorten(path)} cannot be a file name", Stage.FETCH) from None
    except OSError as error:
        if error.errno in _MISSING_ERRNO:
            refuse_unmounted(store, path)
            raise MissingObjectError(display_uri(store, path), os.strerror(error.errno)) from None
        if error.errno == errno.ENXIO:
            raise _not_a_file(store, path) from None
        return _checked_length(store.read(path), row, max_bytes)  # tries again, and tells an outage
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _not_a_file(store, path)
        if status.st_size > max_bytes:
            raise _too_large(status.st_size, max_bytes)
        if row.version and row.version != f"{status.st_size}-{status.st_mtime_ns}":
            raise _changed(f"version {row.version}", f"{status.st_size}-{status.st_mtime_ns}")
        data = os.read(handle, status.st_size + 1)
        while len(data) < status.st_size and (more := os.read(handle, status.st_size + 1 - len(data))):
            data += more
        if len(data) != status.st_size:
            raise _changed(f"{status.st_size} bytes", f"{len(data)} while it was read")
    except OSError:
        return _checked_length(store.read(path), row, max_bytes)
    finally:
        os.close(handle)
    return _checked_length(data, row, max_bytes)


def _read_remote(store: Store, path: str, row: PlanRow, max_bytes: int) -> bytes:
    # A range of one byte more than expected shows growth, bounds memory, and spares s3fs the size request it makes before a whole read.
    expected = row.size if row.size >= 0 else max_bytes
    data = store.read(path) if expected == 0 else store.read(path, 0, expected + 1)
    _checked_length(data, row, max_bytes)
    if _MD5.fullmatch(row.version) and hashlib.md5(data, usedforsecurity=False).hexdigest() != row.version:
        now = store.info(path)
        if now is None or now.version != row.version:
            raise _changed(f"etag {row.version}", "gone" if now is None else now.version)
    return data


def _checked_length(data: bytes, row: PlanRow, max_bytes: int) -> bytes:
    if 0 <= row.size != len(data):
        raise _changed(f"{row.size} bytes", f"{'at least ' if len(data) > row.size else ''}{len(data)}")
    if len(data) > max_bytes:
        raise _too_large(len(data), max_bytes)
    return data


def _changed(planned: str, seen: str) -> BadInput:
    return BadInput(Reason.CHANGED_SINCE_PLAN, f"planned with {planned}, now {seen}", Stage.FETCH)


def _too_large(size: int, max_bytes: int) -> BadInput:
    return BadInput(Reason.TOO_LARGE, f"{size} bytes; at most {max_bytes} are read", Stage.FETCH)


def _not_a_file(store: Store, path: str) -> BadInput:
    return BadInput(Reason.NOT_A_FILE, f"{display_uri(store, path)} is a directory, pipe, socket or device; expected a file", Stage.FETCH)
