"""Web hosts that a table names. One may be gone for ever although the network works (SPEC.md section 6, "Permanent or passing").

A URL gets a number of attempts and a time. If they are spent and other objects can be read, the input fails with the host's own words; if
none can be read, it is an outage. A host that is known to be dead is not waited for again for each of its images (health.py).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import fsspec

from tokenshards.pipeline.activity import WAITING_FOR_STORE, doing
from tokenshards.pipeline.config import RetryConfig, UrlLimits
from tokenshards.pipeline.errors import (
    BadInput,
    MissingObjectError,
    Reason,
    Stage,
    TokenshardsError,
    TransientStorageError,
    UnreadableObjectError,
)
from tokenshards.pipeline.sources.hosts.failures import HostFailure, answered_status, failure_of, host_of, refused_url
from tokenshards.pipeline.sources.hosts.health import Death, HostHealth
from tokenshards.pipeline.sources.witnesses import PROBE_SECONDS, PROBES, Witnesses, answers_for_others, shown_as_waiting
from tokenshards.pipeline.storage.fsspec_requests import WebRemote
from tokenshards.pipeline.storage.request_limit import shared_limit
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.storage.web_hosts import BodyTooLargeError, Download, any_client, public_client
from tokenshards.pipeline.words import counted

__all__ = ["HostStore"]

PROBE_SILENCE_SECONDS, PROBE_TOTAL_SECONDS = 5.0, 30.0
"""The longest silence and the longest time of a request that asks whether a host answers."""
OWN_PROBES = 2
"""Objects of the failing host itself to probe, after those of other hosts."""
LONGEST_WAIT_FOR_A_PLACE = 5
"""Images before this one that a host may be busy with, each for its whole time, before the wait no longer counts as a wait."""
MOST_TRIALS = 8
"""Dead hosts that are asked again at the same time."""
BUSY_PAUSES = 10
"""How much longer the pauses are for a host that is overloaded than for one that fails otherwise."""
_NOT_THERE = (404, 410)
_ADVICE = "Check the network, then run the command again: it continues"


@dataclass(slots=True)
class _Url:
    """One image's URL, and what it has used of its limits."""

    url: str
    place: str
    """The URL for messages, without credentials."""
    most_bytes: int
    seconds_left: float
    attempts: int = 0
    begun: float = field(default_factory=time.monotonic)

    def in_attempts(self) -> str:
        return counted(self.attempts, "attempt")


class HostStore(Store):
    """A web host that a table names."""

    _witnesses = Witnesses()
    """URLs of all hosts together, because only other hosts show whether the network works."""
    _health = HostHealth()
    _trials = threading.BoundedSemaphore(MOST_TRIALS)

    def __init__(
        self, url: str, *, storage_options: dict[str, Any] | None, retry: RetryConfig, limits: UrlLimits, public_only: bool
    ) -> None:
        self._public_only = public_only
        self.limits = limits
        self.host = host_of(url)
        super().__init__(url, storage_options=storage_options, retry=retry)
        self._limit = shared_limit(("url", self.host), most=limits.per_host)
        self._probe_limits = replace(
            limits,
            timeout_seconds=min(PROBE_SILENCE_SECONDS, limits.timeout_seconds),
            total_seconds=min(PROBE_TOTAL_SECONDS, limits.total_seconds),
        )

    def _open(self, protocol: str) -> tuple[Any, str]:
        client = public_client if self._public_only else any_client
        fs = fsspec.filesystem(protocol, **{**self.storage_options, "get_client": client})
        self._remote = WebRemote(fs)
        return fs, self.location

    def __reduce__(self) -> tuple[Any, ...]:
        return _host_store, (self.location, self.storage_options, self.retry, self.limits, self._public_only)

    def fetch(self, path: str, others: Iterable[str], most_bytes: int) -> bytes:
        """Return the bytes of `path`, at most one more than `most_bytes`; `others` are URLs of the same table that may be probed.

        Raises BadInput if it announces to be larger, MissingObjectError, StoreAccessError for a URL that a table may not name,
        UnreadableObjectError with the reason if this host or object fails while others answer, else TransientStorageError.
        """
        asked = _Url(self.join(path), self.place(path), most_bytes, self.limits.total_seconds)
        if (death := self._health.death(self.host)) is not None:
            if self._health.may_try_again(self.host) and self._trials.acquire(blocking=False):
                threading.Thread(target=self._try_again, args=(asked.url, most_bytes), daemon=True).start()
            raise self._not_asked(asked, death, others)
        result = self._attempts(asked, self.limits.attempts)
        return self._judged(asked, result, others) if isinstance(result, HostFailure) else result

    def _try_again(self, url: str, most_bytes: int) -> None:
        """Ask a dead host whether it answers by now. No image waits for that, because reading goes on in order."""
        try:
            result = self._request(_Url(url, url, most_bytes, PROBE_TOTAL_SECONDS), self._probe_limits)
            if isinstance(result, HostFailure) and not result.of_host:
                self._health.answered(self.host)
        except (TokenshardsError, BadInput):
            return  # an answer, which `_request` has noted, or a URL that may not be asked for
        finally:
            self._trials.release()

    def _attempts(self, asked: _Url, attempts: int) -> bytes | HostFailure:
        """Return the bytes, or the last failure when attempts or time are spent, or when the host is found dead meanwhile."""
        # A thread that waits for a place among the requests to this host waits for the store, too.
        bound = LONGEST_WAIT_FOR_A_PLACE * max(self.limits.total_seconds, self.limits.timeout_seconds)
        failure: HostFailure | None = None
        with doing(WAITING_FOR_STORE, asked.place, retries_left=attempts - 1, bound_seconds=bound) as waiting:
            for attempt in range(attempts):
                pause = max(self._pause(attempt, failure), self._health.quiet_seconds(self.host))
                if pause >= asked.seconds_left:
                    words = f"asks for a pause of {pause:.0f} seconds more, which is longer than an image may take"
                    return failure or HostFailure(reason=Reason.UNREADABLE, words=words, of_host=True, hopeless=True, sure=True)
                time.sleep(pause)
                asked.seconds_left -= pause
                waiting.attempt(attempts - 1 - attempt)
                with self._limit.slot():
                    if (death := self._health.death(self.host)) is not None:  # found dead while this image waited
                        return failure or HostFailure(reason=death.reason, words=death.words, hopeless=True)
                    waiting.attempt(attempts - 1 - attempt)
                    result = self._request(asked, self.limits)
                if not isinstance(result, HostFailure):
                    return result
                failure = result
                if failure.hopeless or attempt == attempts - 1:
                    return failure
        raise AssertionError("unreachable")

    def _pause(self, attempt: int, failure: HostFailure | None) -> float:
        delay = self.retry.first_delay_seconds * 2 ** (attempt - 1) if attempt else 0.0
        delay *= BUSY_PAUSES if failure is not None and failure.busy else 1
        return min(self.retry.max_delay_seconds, delay) * random.uniform(0.5, 1.0)

    def _request(self, asked: _Url, limits: UrlLimits, *, only_head: bool = False) -> bytes | HostFailure:
        download = Download(
            url=asked.url,
            most_bytes=asked.most_bytes,
            silence_seconds=limits.timeout_seconds,
            total_seconds=max(0.001, min(limits.total_seconds, asked.seconds_left)),
            only_head=only_head,
        )
        begun = time.monotonic()
        try:
            data = download.read(self.fs)
        except BodyTooLargeError as error:
            self._health.answered(self.host)
            detail = f"{self.host} announces {error.size} bytes; expected at most {asked.most_bytes}"
            raise BadInput(Reason.TOO_LARGE, detail, Stage.FETCH) from None
        except Exception as error:  # the client raises many types for the same outages
            return self._failed(asked, error, download)
        finally:
            asked.attempts += 1
            asked.seconds_left -= time.monotonic() - begun
        self._health.answered(self.host)
        self._witnesses.note(asked.url, begun)
        return data

    def _failed(self, asked: _Url, error: Exception, download: Download) -> HostFailure:
        if (refused := refused_url(error, asked.place, download)) is not None:
            raise refused from None
        if answered_status(error) in _NOT_THERE:
            self._health.answered(self.host)
            raise MissingObjectError(asked.place, f"{self.host} answers {answered_status(error)}") from None
        failure = failure_of(error, download, self.storage_options)
        if failure.answered:
            self._health.answered(self.host)
        if failure.quiet_seconds:
            self._health.wants_quiet(self.host, failure.quiet_seconds)
        if failure.busy and failure.of_host:
            self._limit.throttled()
        return failure

    def _judged(self, asked: _Url, failure: HostFailure, others: Iterable[str]) -> bytes:
        """Return the bytes if they can be read by now; raise UnreadableObjectError if only other objects can, else the outage."""
        if (death := self._health.death(self.host)) is not None:
            raise self._not_asked(asked, death, others)
        words = f"{self.host} {failure.words} ({asked.in_attempts()})"
        with shown_as_waiting(asked.place):
            if not answers_for_others(self._witnesses, lambda url: url != asked.url, self._candidates(asked.url, others), self._probe):
                raise self._outage(f"{asked.place}: {words}", others)
        if not failure.sure:
            before = asked.attempts
            asked.seconds_left = max(asked.seconds_left, self._probe_limits.timeout_seconds)
            again = self._attempts(asked, self.limits.attempts if failure.busy else 1)
            if not isinstance(again, HostFailure):
                return again
            failure = failure if again.hopeless else again  # an attempt that was cut short says little
            if asked.attempts > before:
                words = f"{self.host} {failure.words} ({asked.in_attempts()}, the last after others answered)"
        if failure.of_host:
            self._health.failed(self.host, failure.reason, words, begun=asked.begun, patience=failure.patience)
        raise UnreadableObjectError(
            f"{asked.place}: {words}, although other objects can be read", reason=failure.reason, objects=(asked.place,)
        )

    def _not_asked(self, asked: _Url, death: Death, others: Iterable[str]) -> TransientStorageError:
        """Return the error for an image of a dead host, if another host answered within the minute or does so now; else the outage."""

        def elsewhere(url: str) -> bool:
            return host_of(url) != self.host

        if not self._witnesses.since(time.monotonic() - PROBE_SECONDS, elsewhere):
            with shown_as_waiting(asked.place):
                if not answers_for_others(self._witnesses, elsewhere, self._candidates(asked.url, others, own=0), self._probe):
                    return self._outage(f"{asked.place}: {death.words}", others)
        images = "the image before" if death.images == 1 else f"{death.images} images in a row"
        words = f"{asked.place}: not asked for, because its host failed for {images}: {death.words}, although other hosts answer"
        return UnreadableObjectError(words, reason=death.reason, objects=(asked.place,))

    def _outage(self, words: str, others: Iterable[str]) -> TransientStorageError:
        alone = all(host_of(url) == self.host for url in others)
        why = "the table names no other host that could show whether the network works" if alone else "no other host answers either"
        return TransientStorageError(f"{words}; {why}", advice=_ADVICE)

    def _candidates(self, url: str, others: Iterable[str], own: int = OWN_PROBES) -> Iterator[str]:
        """Yield URLs to probe: one of each of up to eight other hosts that are not known to be dead, then some of the same host."""
        hosts, same = {self.host}, list[str]()
        for other in chain(self._witnesses.names(), others):
            host = host_of(other)
            if host == self.host and other != url and len(same) < own:
                same.append(other)
            elif host not in hosts and len(hosts) <= PROBES and self._health.death(host) is None:
                hosts.add(host)
                yield other
        yield from same

    def _probe(self, url: str) -> None:
        """Read the start of an object; raises TransientStorageError or another of the errors of `fetch` if that fails."""
        place = "/".join(url.split("/", 3)[:3])
        store = HostStore(place, storage_options=self.storage_options, retry=self.retry, limits=self.limits, public_only=self._public_only)
        result = store._request(_Url(url, url, 0, PROBE_TOTAL_SECONDS), self._probe_limits, only_head=True)
        if isinstance(result, HostFailure):
            raise TransientStorageError(result.words)


def _host_store(url: str, storage_options: dict[str, Any], retry: RetryConfig, limits: UrlLimits, public_only: bool) -> HostStore:
    return HostStore(url, storage_options=storage_options, retry=retry, limits=limits, public_only=public_only)
