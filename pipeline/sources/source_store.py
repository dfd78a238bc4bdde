"""Stores of inputs. They distinguish one unreadable object from a store or a network that is down (SPEC.md section 6).

An error counts as an outage while the whole store may be down. It counts as unreadable if, after the last attempt, the store returns
another object and fails once more for this one.
"""

from __future__ import annotations

import posixpath
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import fsspec

from tokenshards.pipeline.activity import WAITING_FOR_STORE, doing
from tokenshards.pipeline.config import RetryConfig
from tokenshards.pipeline.errors import Reason, StoreAccessError, TokenshardsError, TransientStorageError, UnreadableObjectError
from tokenshards.pipeline.storage.fsspec_requests import WebRemote
from tokenshards.pipeline.storage.request_limit import status_of
from tokenshards.pipeline.storage.store import ObjectInfo, Store, display_url
from tokenshards.pipeline.storage.web_hosts import PrivateHostError, any_client, public_client

__all__ = ["HostStore", "SourceStore", "host_of"]

PROBES = 8
PROBE_SECONDS = 60.0
"""Time after a failure within which all its probes must begin."""
LISTED = 64
"""Entries of a listing to consider as objects to probe."""
HOST_ATTEMPTS = 3
HOST_SECONDS = 60.0
"""Time limit for one object of a foreign host, even if bytes still trickle in."""
_FORBIDDEN = (401, 403, 451)
_TOO_MANY, _SERVER_ERRORS = 429, 500


class Witnesses:
    """Recently read objects: they prove that a store answers, and they are the best ones to probe. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[tuple[str, float]] = deque(maxlen=4 * PROBES)
        self.judging = threading.Lock()
        """The probing thread holds this lock; the others wait for its result."""
        self.away_at = float("-inf")
        """`time.monotonic()` of the last time that no probe succeeded."""

    def note(self, name: str, begun: float) -> None:
        """Record that an object was read by a request that began at `begun`."""
        with self._lock:
            self._seen.append((name, begun))

    def since(self, failed_at: float, fits: Callable[[str], bool]) -> bool:
        """Return whether a request for a fitting object began after `failed_at` and succeeded; an earlier request would prove nothing."""
        with self._lock:
            return any(begun > failed_at and fits(name) for name, begun in reversed(self._seen))

    def names(self) -> list[str]:
        """Return the names of the objects read, latest first."""
        with self._lock:
            return list(dict.fromkeys(name for name, _ in reversed(self._seen)))


def answers_for_others(
    witnesses: Witnesses,
    fits: Callable[[str], bool],
    others: Iterable[str],
    probe: Callable[[str], object],
    kind_of: Callable[[str], str] = str,
) -> bool:
    """After a failure, return whether one of up to eight other objects, each of another kind, can be read now."""
    failed_at = time.monotonic()
    with witnesses.judging:
        if witnesses.since(failed_at, fits):
            return True
        if witnesses.away_at > failed_at:
            return False
        for name in islice(_one_of_each(filter(fits, chain(witnesses.names(), others)), kind_of), PROBES):
            begun = time.monotonic()
            if begun > failed_at + PROBE_SECONDS:
                break
            try:
                probe(name)
            except (TokenshardsError, OSError):
                continue
            witnesses.note(name, begun)
            return True
        witnesses.away_at = time.monotonic()
        return False


def _one_of_each(names: Iterable[str], kind_of: Callable[[str], str]) -> Iterator[str]:
    seen = set()
    for name in names:
        if (kind := kind_of(name)) not in seen:
            seen.add(kind)
            yield name


@contextmanager
def _shown_as_waiting(place: str) -> Iterator[None]:
    """Report the operation as waiting for its store while probes run, as between two attempts."""
    with doing(WAITING_FOR_STORE, place, retries_left=0):
        yield


class SourceStore(Store):
    """A store of inputs. Raises UnreadableObjectError if the retries are used up but the store answers for other objects."""

    def __init__(self, url: str, *, storage_options: dict[str, Any] | None = None, retry: RetryConfig | None = None) -> None:
        super().__init__(url, storage_options=storage_options, retry=retry)
        self._witnesses = Witnesses()

    def __setstate__(self, state: tuple[str, dict[str, Any], RetryConfig]) -> None:
        super().__setstate__(state)
        self._witnesses = Witnesses()

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """As `Store.read`; raises UnreadableObjectError too."""
        begun = time.monotonic()
        try:
            data = super().read(path, start, end)
        except StoreAccessError:
            raise
        except TransientStorageError as error:
            raise self._judged(path, error, lambda store: Store.read(store, path, start, end)) from None
        self._witnesses.note(path, begun)
        return data

    def info(self, path: str) -> ObjectInfo | None:
        """As `Store.info`; raises UnreadableObjectError too."""
        try:
            return super().info(path)
        except StoreAccessError:
            raise
        except TransientStorageError as error:
            raise self._judged(path, error, lambda store: Store.info(store, path)) from None

    def _judged(self, path: str, error: TransientStorageError, again: Callable[[Store], object]) -> TransientStorageError:
        once = Store(self.location, storage_options=self.storage_options, retry=replace(self.retry, attempts=1))
        with _shown_as_waiting(self.place(path)):
            others = self._listed(once, path)
            if not answers_for_others(self._witnesses, lambda name: name != path, others, lambda name: once.read(name, 0, 1)):
                return error
            try:
                again(self if _is_busy(error) else once)
            except (TokenshardsError, OSError):
                return UnreadableObjectError(f"{error.words}, although its store answers for others", objects=(self.place(path),))
        return error

    def _listed(self, once: Store, path: str) -> Iterator[str]:
        """Yield objects near `path`; nothing if the store cannot be listed."""
        if self.is_web:
            return
        folder = posixpath.dirname(path)
        for place in (folder,) if self.root == "/" or not folder else (folder, ""):
            try:
                yield from (info.path for info in islice(once.list(place), LISTED) if info.regular)
            except TokenshardsError:
                continue


class _HostRemote(WebRemote):
    """A foreign web server. The sizes of its objects are unknown, so every request has the same time limit."""

    def __init__(self, fs: Any) -> None:
        super().__init__(fs)
        self.bound = {"timeout": HOST_SECONDS}

    def bound_of(self, size: int) -> dict[str, Any]:
        return self.bound


class HostStore(Store):
    """A web host that a table names. It may be gone for ever although the network works."""

    _witnesses = Witnesses()
    """URLs of all hosts together, because only other hosts show whether the network works."""

    def __init__(self, url: str, *, storage_options: dict[str, Any] | None, retry: RetryConfig, public_only: bool) -> None:
        self._public_only = public_only
        super().__init__(url, storage_options=storage_options, retry=replace(retry, attempts=min(HOST_ATTEMPTS, retry.attempts)))

    def _open(self, protocol: str) -> tuple[Any, str]:
        client = public_client if self._public_only else any_client
        fs = fsspec.filesystem(protocol, **{**self.storage_options, "get_client": client})
        self._remote = _HostRemote(fs)
        return fs, self.location

    def __reduce__(self) -> tuple[Any, ...]:
        return _host_store, (self.location, self.storage_options, self.retry, self._public_only)

    def fetch(self, path: str, others: Iterable[str], read: Callable[[Store], bytes]) -> bytes:
        """Return the bytes of `path` by `read`; `others` are URLs of the same table whose hosts may be probed.

        Raises UnreadableObjectError with the reason if this host or object fails while others answer.
        """
        begun, url = time.monotonic(), self.join(path)
        try:
            data = read(self)
        except StoreAccessError:
            raise
        except TransientStorageError as error:
            raise self._judged(url, error, others, read) from None
        self._witnesses.note(url, begun)
        return data

    def _judged(
        self, url: str, error: TransientStorageError, others: Iterable[str], read: Callable[[Store], bytes]
    ) -> TransientStorageError:
        host, answered = host_of(url), status_of(error)[0] != 0

        def fits(other: str) -> bool:
            return other != url and (answered or host_of(other) != host)  # the same host is a witness only if it answered

        def kind_of(other: str) -> str:  # one object per other host, but any number of objects of this host
            return other if host_of(other) == host else host_of(other)

        def probe(other: str) -> None:
            place = "/".join(other.split("/", 3)[:3])
            self._once(place).read(other.removeprefix(place).lstrip("/"), 0, 1)

        place = display_url(url)
        with _shown_as_waiting(place):
            if not answers_for_others(self._witnesses, fits, others, probe, kind_of):
                return error
            try:
                read(self if _is_busy(error) else self._once(self.location))
            except (TokenshardsError, OSError):
                message = f"{error.words}, although other objects can be read"
                return UnreadableObjectError(message, reason=_reason_of(error), objects=(place,))
        return error

    def _once(self, url: str) -> HostStore:
        retry = replace(self.retry, attempts=1)
        return HostStore(url, storage_options=self.storage_options, retry=retry, public_only=self._public_only)

    def _final(self, error: Exception, path: str, where: str, verb: str, attempt: int) -> TokenshardsError | Exception | None:
        if any(isinstance(cause, PrivateHostError) for cause in _causes(error)):
            return StoreAccessError(
                f"{where}: the URL leads to an address that is not public (private, loopback or link-local); a table may name only "
                "public hosts. If you trust the table, add --allow-private-hosts",
                bad_name=Reason.PRIVATE_HOST,
            )
        if isinstance(error, ValueError):  # aiohttp raises it for an invalid URL
            return StoreAccessError(f"{where} is not a valid URL ({type(error).__name__})", bad_name=Reason.BAD_URI)
        return super()._final(error, path, where, verb, attempt)


def _is_busy(error: TransientStorageError) -> bool:
    """Return whether a store answered that it is overloaded. One more failure then proves little, so the check makes all retries."""
    status = status_of(error)[0]
    return status == _TOO_MANY or status >= _SERVER_ERRORS


def _host_store(url: str, storage_options: dict[str, Any], retry: RetryConfig, public_only: bool) -> HostStore:
    return HostStore(url, storage_options=storage_options, retry=retry, public_only=public_only)


def host_of(url: str) -> str:
    """Return host and port of a URL."""
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2].lower()


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _reason_of(error: BaseException) -> Reason:
    """Return the quarantine reason for an object of a foreign host, from the client's last error."""
    status = status_of(error)[0]
    if status:
        return Reason.HTTP_403 if status in _FORBIDDEN else Reason.UNREADABLE
    causes = list(_causes(error))
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}  # by name: aiohttp may be missing
    if "gaierror" in kinds or "ClientConnectorDNSError" in kinds:
        return Reason.DNS
    if "ServerTimeoutError" in kinds:
        return Reason.TIMEOUT
    return Reason.TOO_SLOW if "FSTimeoutError" in kinds else Reason.REFUSED
