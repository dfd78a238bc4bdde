"""Fetch the bytes of planned inputs: limited in size, checked against the plan, read ahead in order."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TypeVar

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
from tokenshards.pipeline.sources.hosts.failures import host_of
from tokenshards.pipeline.sources.hosts.store import HostStore
from tokenshards.pipeline.sources.hosts.uris import locate
from tokenshards.pipeline.storage.store import Store, readable
from tokenshards.pipeline.thread_map import map_in_order

__all__ = [
    "ImageAndMask",
    "MAX_BYTES",
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
"""Largest encoded image to read."""
AHEAD_BYTES = 256 << 20
"""Most bytes of encoded images per shard that are read ahead of the consumer."""
UNKNOWN_BYTES = 4 << 20
"""Assumed size, within AHEAD_BYTES, of a table's URL until its bytes arrive."""
PROBED_ROWS = 4096
URLS_OF_A_HOST = 16
ONE_SOURCE = SourceConfig()

_MISSING_ERRNO = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_MD5 = re.compile(r"[0-9a-f]{32}")


def fetch_file(
    store: Store, row: PlanRow, config: SourceConfig = ONE_SOURCE, *, others: Iterable[str] = (), max_bytes: int = MAX_BYTES
) -> bytes:
    """Return the bytes of a planned file: below `store`, or at the absolute URL or local path from a table.

    A local file is opened once, never blocks (a pipe is refused) and must have the planned size and modification time.

    A remote object costs one request. Its length is always compared. If the planned version is an MD5, as most etags of S3 are, the content
    is compared too. Only on a mismatch the store is asked again, because the etag of an encrypted object is not an MD5. Other versions are
    not compared, because that would cost a second request per object.

    An absolute URL is read with the options of `store` if both have the same protocol. `others` are URLs of the same table, which may be
    probed when the host of this URL fails.

    Raises BadInput at stage FETCH for permanent causes: missing, not a file, too large, changed since the plan, a URI that a table may not
    name or whose bucket does not exist. An unreadable object raises BadInput if `config.unreadable` allows quarantine, else
    UnreadableObjectError. Raises other TransientStorageErrors if the store fails or the source's bucket does not exist.
    """
    source, (store, path) = store, locate(store, row.path, config)
    if row.size > max_bytes:
        raise _too_large(row.size, max_bytes)
    try:
        with doing(FETCH, row.sample_id):
            if store.is_local:
                return _read_local(store, path, row, max_bytes)
            if isinstance(store, HostStore):
                return _checked_length(store.fetch(path, others, max_bytes), row, max_bytes)
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
    """Return the error to raise for an unreadable object: BadInput if it may be quarantined, else `error` itself."""
    allowed = config.unreadable or ("quarantine" if foreign else "stop")
    return BadInput(error.reason, readable(error.words), Stage.FETCH) if allowed == "quarantine" else error


def urls_to_probe(rows: Iterable[PlanRow]) -> list[str]:
    """Return some of a table's URLs, alternating between its hosts. When one host fails, the URLs of the others can be probed.

    The order of the hosts is random: if the first eight are dead, another attempt probes others.
    """
    by_host: dict[str, list[str]] = {}
    for row in islice(rows, PROBED_ROWS):
        if row.path.startswith(("http://", "https://")):
            urls = by_host.setdefault(host_of(row.path), [])
            if len(urls) < URLS_OF_A_HOST:
                urls.append(row.path)
    lists = list(by_host.values())
    random.shuffle(lists)
    return [url for urls in zip_longest(*lists) for url in urls if url is not None]


def fetch_ahead(
    rows: Iterable[R],
    fetch: Callable[[R], T],
    *,
    threads: int,
    ahead: int,
    size_of: Callable[[R], int] = lambda row: 0,
    budget_bytes: int = AHEAD_BYTES,
) -> Iterator[tuple[R, T | BadInput]]:
    """Yield (row, result of `fetch` or its BadInput) in the order of `rows`; at most `ahead` rows are fetched ahead of the consumer.

    The rows fetched ahead fit in `budget_bytes` by `size_of`, except that one row alone may be larger. `threads=0` fetches inline. Any
    exception except BadInput ends the iteration at its row. Closing the generator drops queued rows and waits for the reads in flight.
    """

    held = _Held()

    def attempt(row: R) -> tuple[R, T | BadInput]:
        result: T | BadInput
        try:
            result = fetch(row)
        except BadInput as bad:
            result = bad
        held.add(_size_of_result(result) - size_of(row))
        return row, result

    def counted() -> Iterator[R]:
        for row in rows:
            held.add(size_of(row))
            yield row

    def full(pending: object, row: R) -> bool:
        return held.bytes > budget_bytes

    if threads == 0:
        yield from map(attempt, rows)
        return
    with contextlib.closing(map_in_order(attempt, counted(), threads=threads, ahead=max(0, ahead - 1), full=full)) as results:
        for row, result in results:
            held.add(-_size_of_result(result))
            yield row, result


class _Held:
    """Bytes of rows read ahead: real sizes of finished reads, expected sizes of the others. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0

    def add(self, count: int) -> None:
        with self._lock:
            self.bytes += count


@dataclass(frozen=True, slots=True)
class ImageAndMask:
    """The bytes of an image, and the bytes or the error of its mask."""

    image: bytes
    mask: bytes | BadInput


def _size_of_result(result: object) -> int:
    if isinstance(result, ImageAndMask):
        return len(result.image) + _size_of_result(result.mask)
    return len(result) if isinstance(result, bytes) else 0


def expected_bytes(row: PlanRow) -> int:
    """Return the size of a file row and its mask in bytes, a guess for a table's URL."""
    return (row.size if row.size >= 0 else UNKNOWN_BYTES) + max(0, row.mask_size)


def refuse_unmounted(store: Store, path: str) -> None:
    """Raise TransientStorageError if the whole disk seems gone, not just this file: the source folder is missing, or a folder is empty."""
    if not os.path.isdir(store.root):
        raise TransientStorageError(
            f"{store.root}: the folder of the source is gone", advice="Mount or move it back, then run the command again: it continues"
        )
    folder = os.path.dirname(store.join(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        empty = not os.listdir(folder)
    except OSError:  # there is no permission to list the folder, so a disk is mounted
        return
    if empty:
        raise TransientStorageError(
            f"{folder}: this folder is empty, but the plan has inputs in it, such as {store.place(path)}",
            advice="If a disk belongs there, mount it; if the inputs were deleted, remove the empty folder. Then run the command again",
        )


def _read_local(store: Store, path: str, row: PlanRow, max_bytes: int) -> bytes:
    where = store.join(path)
    try:
        handle = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a NUL, or characters that a file name cannot hold
        raise BadInput(Reason.BAD_URI, f"{shorten(path)} cannot be a file name", Stage.FETCH) from None
    except OSError as error:
        if error.errno in _MISSING_ERRNO:
            refuse_unmounted(store, path)
            raise MissingObjectError(store.place(path), os.strerror(error.errno)) from None
        if error.errno == errno.ENXIO:
            raise _not_a_file(store, path) from None
        return _checked_length(store.read(path), row, max_bytes)  # retries, and recognises an outage
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
            raise _changed(f"{status.st_size} bytes", f"{len(data)} during the read")
    except OSError:
        return _checked_length(store.read(path), row, max_bytes)
    finally:
        os.close(handle)
    return _checked_length(data, row, max_bytes)


def _read_remote(store: Store, path: str, row: PlanRow, max_bytes: int) -> bytes:
    # A range one byte longer than expected detects growth, bounds memory, and avoids the size request of s3fs before a whole read.
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
    return BadInput(Reason.TOO_LARGE, f"{size} bytes; expected at most {max_bytes}", Stage.FETCH)


def _not_a_file(store: Store, path: str) -> BadInput:
    return BadInput(Reason.NOT_A_FILE, f"{store.place(path)} is a directory, pipe, socket or device; expected a file", Stage.FETCH)
