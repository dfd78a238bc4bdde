"""JSONL logs of a run in its bucket: `runs/<uuid>/driver.jsonl` and one file per worker.

A store cannot append to an object, so each flush puts the current part again. A full part is never written again.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from tokenshards.pipeline.storage.store import Store

__all__ = ["RunLog"]

PART_BYTES = 1 << 18


class RunLog:
    """The log of one process of a run; several threads may add lines."""

    def __init__(self, store: Store, run_uuid: str, name: str) -> None:
        self._store = store
        self._stem = f"runs/{run_uuid}/{name}"
        self._part = 0
        self._text = b""
        self._written = 0
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    def add(self, message: str, **details: Any) -> None:
        """Add a line; the next flush writes it."""
        entry = {"time_seconds": round(time.time(), 3), "message": message, **details}
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._lock:
            self._text += line

    def flush(self) -> None:
        """Write the lines added since the last flush. After a TransientStorageError the lines are kept for the next flush."""
        with self._flushing:
            text = self._text
            if len(text) == self._written:
                return
            name = f"{self._stem}.jsonl" if self._part == 0 else f"{self._stem}-{self._part:04d}.jsonl"
            self._store.write(name, text)  # outside the lock: a failing store takes long, and `add` must not wait
            self._written = len(text)
            if self._written >= PART_BYTES:
                with self._lock:
                    self._part, self._text, self._written = self._part + 1, self._text[len(text) :], 0
