"""A user's own store of inputs. It distinguishes one unreadable object from a store that is down (SPEC.md section 6).

An error counts as an outage while the whole store may be down. It counts as unreadable if, after the last attempt, the store returns
another object and fails once more for this one.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from tokenshards.pipeline.config import RetryConfig
from tokenshards.pipeline.errors import StoreAccessError, TokenshardsError, TransientStorageError, UnreadableObjectError
from tokenshards.pipeline.sources.witnesses import PROBES, Witnesses, answers_for_others, shown_as_waiting
from tokenshards.pipeline.storage.request_limit import status_of
from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = ["SourceStore"]

LISTED = 64
"""Entries of a listing to consider as objects to probe."""
_TOO_MANY, _SERVER_ERRORS = 429, 500


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

        def fits(name: str) -> bool:
            return name != path

        with shown_as_waiting(self.place(path)):
            names = chain(self._witnesses.names(), self._listed(once, path))
            candidates = islice(_distinct(filter(fits, names)), PROBES)
            if not answers_for_others(self._witnesses, fits, candidates, lambda name: once.read(name, 0, 1)):
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


def _is_busy(error: TransientStorageError) -> bool:
    """Return whether a store answered that it is overloaded. One more failure then proves little, so the check makes all retries."""
    status = status_of(error)[0]
    return status == _TOO_MANY or status >= _SERVER_ERRORS


def _distinct(names: Iterable[str]) -> Iterator[str]:
    seen = set()
    for name in names:
        if name not in seen:
            seen.add(name)
            yield name
