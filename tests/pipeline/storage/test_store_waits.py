"""Retries of a store report themselves, so that waiting for a store can be told from hanging."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenshards.pipeline.config import RetryConfig
from tokenshards.pipeline.errors import TransientStorageError
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.storage.store_waits import StoreWait, listen, waiting


class FlakyStore(Store):
    """A memory store whose first `failures` reads fail."""

    failures = 0

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        def once() -> bytes:
            if self.failures:
                self.failures -= 1
                raise OSError("the store is away")
            seen.append(waiting())
            return b"1"

        return self._tried(path, "read", once)


seen: list[StoreWait | None] = []


def test_each_retry_is_reported_and_its_end_too() -> None:
    store = FlakyStore("memory://waits", retry=RetryConfig(attempts=4, first_delay_seconds=0.0))
    seen.clear()
    heard: list[StoreWait | None] = []
    with listen(heard.append):
        store.read("a")
        assert heard == [] and seen == [None]
        store.failures = 2
        store.read("b")
        assert waiting() is None
    first, second, end = heard
    assert first is not None and second is not None and end is None
    assert (first.verb, first.attempt, first.retries_left, first.error) == ("read", 1, 3, "OSError: the store is away")
    assert (second.attempt, second.retries_left, second.since) == (2, 2, first.since) and second.place == "memory://waits/b"
    assert seen[1] == second, "a heartbeat thread sees it while it lasts"
    store.failures = 1
    store.read("c")
    assert len(heard) == 3, "nobody listens any more"


def test_an_operation_that_fails_for_good_waits_no_longer() -> None:
    store = FlakyStore("memory://waits", retry=RetryConfig(attempts=2, first_delay_seconds=0.0))
    store.failures = 9
    with pytest.raises(TransientStorageError):
        store.read("a")
    assert waiting() is None


def test_a_missing_object_is_no_wait(tmp_path: Path) -> None:
    heard: list[StoreWait | None] = []
    with listen(heard.append):
        assert Store(str(tmp_path)).info("gone") is None
    assert heard == []
