"""Bytes of planned inputs: bounded, checked against the plan, read ahead in order."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import fsspec
from fsspec.core import split_protocol

from tokenshards.pipeline.activity import FETCH, doing
from tokenshards.pipeline.errors import BadInput, MissingObjectError, Reason, Stage, StoreAccessError, TransientStorageError, shorten
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.storage.redaction import S3_PROTOCOLS, has_credentials
from tokenshards.pipeline.storage.store import Store, display_url, is_absolute

__all__ = ["MAX_BYTES", "display_uri", "fetch_ahead", "fetch_file"]

R = TypeVar("R")
T = TypeVar("T")

MAX_BYTES = 256 << 20
"""Largest encoded image that is read, in bytes."""

_MISSING_ERRNO = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_MD5 = re.compile(r"[0-9a-f]{32}")

_foreign_stores: dict[tuple[str, str, str], Store] = {}


def fetch_file(store: Store, row: PlanRow, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a planned file below `store`, or at the absolute URL or local path that a table gave.

    A local file is opened once without ever blocking (a pipe is refused) and must have the planned size and time of change. A remote object
    costs one request: its length is always compared, and where the planned version is an MD5, as the etags of S3 mostly are, so is the
    content; only on a mismatch is the store asked again, since an etag of an encrypted object is no MD5. Other versions would
    cost a request per object and are not compared. An absolute URL is read with the options of `store` where both use one protocol.
    Raises BadInput at stage FETCH for permanent causes (missing, not a file, too large, changed since the plan, a URI that cannot be
    opened or names a bucket that is not there) and TransientStorageError when the store fails, or the bucket of the source is not there.
    """
    source, (store, path) = store, _locate(store, row.path)
    if row.size > max_bytes:
        raise _too_large(row.size, max_bytes)
    try:
        with doing(FETCH, row.sample_id):
            return _read_local(store, path, row, max_bytes) if store.is_local else _read_remote(store, path, row, max_bytes)
    except MissingObjectError as error:
        raise BadInput(Reason.MISSING, _readable(str(error)), Stage.FETCH) from None
    except StoreAccessError as error:
        if store is source or error.bad_name is None:
            raise
        raise BadInput(error.bad_name, _readable(str(error)), Stage.FETCH) from None


def fetch_ahead(rows: Iterable[R], fetch: Callable[[R], T], *, threads: int, ahead: int) -> Iterator[tuple[R, T | BadInput]]:
    """Yield (row, what `fetch` returns or BadInput) in the order of `rows`, at most `ahead` of them fetched before they are asked for.

    `threads=0` fetches inline. Exceptions other than BadInput end the iteration at their row. Closing the generator drops what is queued
    and waits for the reads in flight.
    """

    def attempt(row: R) -> T | BadInput:
        try:
            return fetch(row)
        except BadInput as bad:
            return bad

    if threads == 0:
        for row in rows:
            yield row, attempt(row)
        return
    pending: deque[tuple[R, Future[T | BadInput]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    try:
        for row in rows:
            pending.append((row, pool.submit(attempt, row)))
            if len(pending) >= max(1, ahead):
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def display_uri(store: Store, path: str) -> str:
    """Return where `path` lies, without credentials and as valid UTF-8, fit for messages and quarantine rows."""
    uri = path if is_absolute(path) else f"{(store.root if store.is_local else store.url).rstrip('/')}/{path}"
    return _readable(display_url(uri) if store.is_web or is_absolute(path) else uri)


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _locate(store: Store, path: str) -> tuple[Store, str]:
    """Return the store that holds `path` and the path inside it; stores of other hosts are made once."""
    if not path:
        raise BadInput(Reason.BAD_URI, "the table gives no URI; expected a path or a URL", Stage.FETCH)
    if not is_absolute(path):
        return store, path
    protocol, rest = split_protocol(path)
    if protocol in (None, "file", "local"):
        return _foreign_store(store, "file", "", "/"), rest.lstrip("/")
    try:
        if "::" in path:
            raise ValueError("a chain of URLs")
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        expected = "expected a path or a URL whose scheme fsspec knows, such as s3://bucket/key"
        raise BadInput(Reason.BAD_URI, f"{shorten(display_url(path))} cannot be opened ({error}); {expected}", Stage.FETCH) from None
    if protocol in S3_PROTOCOLS and has_credentials(path):
        detail = f"{display_url(path)} was given with credentials in the URL; expected s3://BUCKET/KEY"
        raise BadInput(Reason.BAD_URI, detail, Stage.FETCH)
    host, _, inside = rest.partition("/")
    return _foreign_store(store, protocol, host, f"{protocol}://{host}"), inside


def _foreign_store(store: Store, protocol: str, host: str, url: str) -> Store:
    # Options belong to a protocol: the endpoint and keys of one store would only confuse another.
    same = split_protocol(store.url)[0] == protocol
    options = store.storage_options if same else {}
    key = (protocol, host, repr(sorted(options.items(), key=str)))
    found = _foreign_stores.get(key)
    if found is None:
        found = _foreign_stores[key] = Store(url, storage_options=options, retry=store.retry)
    return found


def _read_local(store: Store, path: str, row: PlanRow, max_bytes: int) -> bytes:
    where = store.join(path)
    try:
        handle = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a NUL, or text that no file name can hold
        raise BadInput(Reason.BAD_URI, f"{shorten(path)} cannot be a file name", Stage.FETCH) from None
    except OSError as error:
        if error.errno in _MISSING_ERRNO:
            if not os.path.isdir(store.root):  # the disk is gone, not this file
                raise TransientStorageError(
                    f"{store.root}: the folder of the source is gone. Mount or move it back, then run the command again: it continues"
                ) from None
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
