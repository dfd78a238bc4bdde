"""A root on any fsspec store: whole objects in, whole objects out, with retries. This module does not know what an object means.

A write publishes a whole object: one put to a remote store; a temporary file, fsync and rename on a local disk. Nothing relies on rename,
append, directories or conditional puts of a remote store. A request to a remote store (fsspec_requests.py, s3.py) is one attempt. All
requests to a store share a limit of requests in flight (request_limit.py). All retries are made here.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.core import split_protocol
from fsspec.utils import glob_translate

from tokenshards.pipeline.activity import WAITING_FOR_STORE, doing
from tokenshards.pipeline.config import RetryConfig
from tokenshards.pipeline.errors import ConfigError, DiskFullError, MissingObjectError, TokenshardsError, TransientStorageError
from tokenshards.pipeline.storage import local
from tokenshards.pipeline.storage.fsspec_requests import REQUEST_SECONDS, SLOWEST, Remote, WebRemote, remote_info
from tokenshards.pipeline.storage.listing import Folder, Page, walk
from tokenshards.pipeline.storage.local import TEMPORARY_PREFIX, ObjectInfo, errno_of, final_error
from tokenshards.pipeline.storage.redaction import S3_PROTOCOLS, display_url, has_credentials, masked
from tokenshards.pipeline.storage.request_limit import is_throttling, shared_limit, status_of

__all__ = ["TEMPORARY_PREFIX", "ObjectInfo", "Store", "absolute_url", "display_url", "is_absolute", "open_parent", "readable"]

T = TypeVar("T")

_MAKE_ROOM = "Make room there, then run the command again: it continues"
_FULL_ERRNO = {errno.ENOSPC, errno.EDQUOT}
_FULL_STATUS = 507
_WEB = ("http", "https")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[^/]*)?://")
_WILDCARD = re.compile(r"[*?\[]")
_GONE = 410
REQUESTS_OF_AN_OPERATION = 3
"""The most requests of one attempt: a put, the look at what the store then holds, and the comparison of its bytes."""
_BUGS = (TypeError, AttributeError, KeyError, AssertionError)


def absolute_url(url: str) -> str:
    """Return a URL unchanged and a local path as an absolute path, so that a process with another current folder can use it."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def is_absolute(path: str) -> bool:
    """Return whether a planned path is a URL or an absolute path, not a path below the source root.

    A key such as `scraped/http://host/x.jpg` is not a URL.
    """
    return path.startswith("/") or _SCHEME.match(path) is not None


def readable(text: str) -> str:
    """Return text as valid UTF-8; invalid bytes, as in some file names, become escapes such as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


class Store:
    """Objects under one root URL or local path.

    A missing object raises MissingObjectError; a missing bucket or missing credentials raise StoreAccessError. Every other failure is
    retried with back-off and jitter, then raises TransientStorageError: an outage must cost time, never data.
    """

    def __init__(self, url: str, *, storage_options: dict[str, Any] | None = None, retry: RetryConfig | None = None) -> None:
        self.location = str(url)
        """The URL as given; `url` is the form for messages, without credentials."""
        self.url = display_url(str(url))
        self.storage_options = dict(storage_options or {})
        self.retry = retry or RetryConfig()
        protocol = split_protocol(str(url))[0]
        if protocol in S3_PROTOCOLS and has_credentials(self.location):
            raise ConfigError(
                f"{self.url} has credentials in the URL, where logs and process lists show them; expected s3://BUCKET/KEY. "
                "Give the credentials by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or --storage-option key=… and secret=…"
            )
        self.is_local = protocol in (None, "file", "local")
        self.is_web = protocol in _WEB
        try:
            self.fs, root = self._open(str(protocol))
        except ConfigError:
            raise
        except (ImportError, ValueError, TypeError) as error:
            why = masked(str(error), self.storage_options)
            raise ConfigError(
                f"{self.url}: this location cannot be opened ({why}); expected a path or a URL that fsspec knows, with its own options"
            ) from None
        except Exception as error:  # some clients connect in their constructor and raise their own types
            why = masked(f"{type(error).__name__}: {error}", self.storage_options)
            raise TransientStorageError(
                f"{self.url}: its store cannot be reached ({why}). Check the store, the network and the credentials, "
                "then run the command again: it continues"
            ) from None
        self.root = root.rstrip("/") or "/"
        self._prefix = f"{self.root.rstrip('/')}/"
        endpoint = self.storage_options.get("endpoint_url") or (self.storage_options.get("client_kwargs") or {}).get("endpoint_url")
        host = self.root.partition("://")[2] if "://" in self.root else self.root.strip("/")
        self._limit = shared_limit((protocol, endpoint, host.partition("/")[0]))

    def _open(self, protocol: str) -> tuple[Any, str]:
        self._remote: Remote
        if protocol in S3_PROTOCOLS:
            from tokenshards.pipeline.storage.s3 import S3Remote, checked_options, open_s3

            self.storage_options = checked_options(self.storage_options)
            self._remote = S3Remote(open_s3(self.storage_options))
            return self._remote.fs, str(fsspec.core.strip_protocol(self.location))
        fs, root = fsspec.core.url_to_fs(self.location, **{**self._uncached(protocol), **self.storage_options})
        self._remote = WebRemote(fs) if self.is_web else Remote(fs)
        return fs, str(root)

    def _uncached(self, protocol: str) -> dict[str, Any]:
        """Return the options that turn fsspec's listing cache off; a cache would hide objects that others publish later."""
        # For web servers fsspec keeps one session and no listings; synchronous clients, such as sftp's, do not take these options.
        if self.is_local or self.is_web or "::" in protocol or not fsspec.get_filesystem_class(protocol).async_impl:
            return {}
        return {"use_listings_cache": False, "skip_instance_cache": True}

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __getstate__(self) -> tuple[str, dict[str, Any], RetryConfig]:
        """Return the arguments that open the same store in another process; clients and limits are not pickled."""
        return self.location, self.storage_options, self.retry

    def __setstate__(self, state: tuple[str, dict[str, Any], RetryConfig]) -> None:
        location, storage_options, retry = state
        Store.__init__(self, location, storage_options=storage_options, retry=retry)

    def join(self, path: str) -> str:
        """Return the store's own name of the object at `path` below the root."""
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def place(self, path: str) -> str:
        """Return the full name of an object for messages: UTF-8, no credentials; an absolute path is kept."""
        whole = path if is_absolute(path) else self.join(path) if self.is_local else f"{self.url.rstrip('/')}/{path}".rstrip("/")
        cut = self.is_web or is_absolute(path)  # in keys of other stores `?` is an ordinary character
        return readable(display_url(whole) if cut else whole)

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes of an object, or of its range [start, end)."""
        full = self.join(path)
        if self.is_local:
            return self._tried(path, "read", lambda: local.read_local(full, start or 0, end))
        return self._tried(path, "read", lambda: self._remote.read(full, start, end), size=(end or 0) - (start or 0))

    def write(self, path: str, data: bytes) -> None:
        """Publish a whole object; readers see all of it or nothing. Size and checksum of an object in a remote store are checked."""
        full = self.join(path)
        if self.is_local:
            self._tried(path, "write", lambda: local.write_local(full, data))
        else:
            self._tried(path, "write", lambda: self._remote.write(full, data), size=len(data))

    def info(self, path: str) -> ObjectInfo | None:
        """Return size and version of one object, None if it does not exist."""
        full = self.join(path)
        try:
            if self.is_local:
                return self._tried(path, "stat", lambda: local.local_info(path, full))
            return remote_info(path, self._tried(path, "stat", lambda: self._remote.info(full)))
        except MissingObjectError:
            return None

    def delete(self, path: str) -> None:
        """Remove an object; a missing one is not an error."""
        full = self.join(path)
        try:
            self._tried(path, "delete", lambda: self._remote.delete(full))
        except MissingObjectError:
            return

    def list(self, prefix: str = "", *, temporary: bool = False, levels: int | None = None) -> Iterator[ObjectInfo]:
        """Yield every object below the folder `prefix`, in any order, with a few pages or one folder in memory at a time.

        `temporary` includes the unfinished files that a killed writer may leave on a local disk. `levels` limits the depth of the objects
        below `prefix`; 1 lists only the objects directly in the folder.
        """
        if self.is_local:
            yield from local.list_local(self.root, prefix, temporary, levels)
            return

        def fetch(folder: Folder) -> Page:
            try:
                page = self._tried(self._relative(folder.path), "list", lambda: self._remote.page(folder))
            except MissingObjectError:
                return Page()  # a missing folder counts as empty
            return page if levels is None else page.above(levels)

        for page in walk(Folder(self.join(prefix)), fetch):
            for entry in page.entries:
                path = self._relative(entry["name"])
                if path and path != prefix:
                    yield remote_info(path, entry)

    def folders(self) -> tuple[str, ...]:
        """Return the names of the folders in the root, in any order; of a very large root only some, or none."""
        if self.is_local or self.is_web:
            return tuple(folder.name for folder in Path(self.root).glob("*/")) if self.is_local else ()
        try:
            page = self._tried("", "list", lambda: self._remote.page(Folder(self.root)))
        except MissingObjectError:
            return ()
        return tuple(folder.path.rstrip("/").rpartition("/")[2] for folder in page.further if folder.token is None)

    def glob(self, pattern: str) -> Iterator[str]:
        """Yield the sorted paths of objects that match a pattern with `*`, `?`, `[…]` or `**`.

        Raises ConfigError if `**` is only a part of a name. fsspec's own glob would silently skip folders that cannot be listed.
        """
        try:
            matches = re.compile(glob_translate(pattern)).match
        except ValueError as error:
            raise ConfigError(f"{self.url}: the pattern {pattern!r} is invalid ({error}); expected one such as train/**/*.tar") from None
        magic = _WILDCARD.search(pattern)
        folder, _, rest = pattern[: magic.start() if magic else None].rpartition("/")
        levels = None if "**" in pattern else f"{rest}{pattern[magic.start() :] if magic else ''}".count("/") + 1
        yield from sorted(info.path for info in self.list(folder, levels=levels) if matches(info.path))

    def _relative(self, name: str) -> str:
        start = self._prefix
        if name.startswith(start) and name[-1] != "/" and name[len(start)] != "/" and not _SCHEME.match(name, len(start)):
            return name[len(start) :]
        root = self.root.strip("/")
        name = name.strip("/")
        path = name[len(root) :].lstrip("/") if root and name.startswith(root) else name
        # A key that begins like a URL would be read from elsewhere. With a changed name it counts as missing, which the user sees.
        return path.replace("://", ":/", 1) if _SCHEME.match(path) else path

    def _tried(self, path: str, verb: str, operation: Callable[[], T], *, size: int = 0) -> T:
        if not self.is_local:  # the client limits the time of each request, so a thread in a request waits for the store and does not hang
            bound = REQUESTS_OF_AN_OPERATION * max(REQUEST_SECONDS, size / SLOWEST)
            with doing(WAITING_FOR_STORE, self.place(path), retries_left=self.retry.attempts - 1, bound_seconds=bound) as waiting:
                return self._tried_often(path, verb, operation, waiting)
        return self._tried_often(path, verb, operation, None)

    def _tried_often(self, path: str, verb: str, operation: Callable[[], T], waiting: doing | None) -> T:
        where = self.place(path)
        for attempt in range(1, self.retry.attempts + 1):
            try:
                if self.is_local:
                    return operation()
                if waiting is not None:
                    waiting.attempt(self.retry.attempts - attempt)
                with self._limit.slot():
                    return operation()
            except NotADirectoryError:
                raise MissingObjectError(
                    path, f"cannot {verb} it, because a part of its path is a file; expected a folder", place=where
                ) from None
            except TokenshardsError:
                raise
            except Exception as error:  # each client raises its own types for the same outages
                if (final := self._final(error, path, where, verb, attempt)) is not None:
                    raise final from None
                if attempt == self.retry.attempts:
                    if isinstance(error, _BUGS):
                        raise
                    said = str(error) or ("it did not end in time" if isinstance(error, TimeoutError) else "its client gives no reason")
                    cause = masked(f"{type(error).__name__}: {said}", self.storage_options)
                    raise TransientStorageError(
                        f"{where}: could not {verb} it in {attempt} attempts; last error: {cause}",
                        advice="Check the store, the network and the credentials, then run the command again: it continues",
                    ) from None  # a message of a client may contain secrets
                if not self.is_local and is_throttling(error):
                    self._limit.throttled()
                delay = min(self.retry.max_delay_seconds, self.retry.first_delay_seconds * 2 ** (attempt - 1))
                pause = delay * random.uniform(0.5, 1.0)
                with doing(WAITING_FOR_STORE, where, retries_left=self.retry.attempts - attempt) if waiting is None else nullcontext():
                    time.sleep(pause)
        raise AssertionError("unreachable")

    def _final(self, error: Exception, path: str, where: str, verb: str, attempt: int) -> TokenshardsError | Exception | None:
        """Return the error to raise if a retry cannot help, None if another attempt may succeed."""
        if verb == "write" and (errno_of(error) in _FULL_ERRNO or status_of(error)[0] == _FULL_STATUS):
            return DiskFullError(f"{where}: there is no room for it ({masked(str(error), self.storage_options)})", advice=_MAKE_ROOM)
        if self.is_local:
            return final_error(error, path, where, verb) or (error if isinstance(error, _BUGS) else None)
        if (hopeless := self._remote.hopeless(error, path, where, attempt)) is not None:
            return hopeless
        # "Not found" during a write means that the store lost the upload, so the write is retried.
        if verb != "write" and (isinstance(error, FileNotFoundError) or status_of(error)[0] == _GONE):
            return MissingObjectError(path, place=where)
        return None


def open_parent(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Store, str]:
    """Return the store of the folder that contains the file at a path or URL, and the name of the file."""
    folder, _, name = url.rpartition("/")
    return Store(folder or ("/" if url.startswith("/") else "."), storage_options=dict(storage_options or {})), name
