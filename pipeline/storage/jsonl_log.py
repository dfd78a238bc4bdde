"""JSONL logs of a run in its bucket: `runs/<uuid>/driver.jsonl` and one file per worker.

Objects cannot be appended to, so the current part is put again; a part that is full is left alone and the next one is begun.
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
    """Lines of one process of a run; may be written to from several threads."""

    def __init__(self, store: Store, run_uuid: str, name: str) -> None:
        self._store = store
        self._stem = f"runs/{run_uuid}/{name}"
        self._part = 0
        self._text = b""
        self._written = 0
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    def add(self, message: str, **details: Any) -> None:
        """Add a line; it is written with the next flush."""
        entry = {"time_seconds": round(time.time(), 3), "message": message, **details}
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._lock:
            self._text += line

    def flush(self) -> None:
        """Publish what was added since the last flush; raises TransientStorageError, and then nothing is lost."""
        with self._flushing:
            text = self._text
            if len(text) == self._written:
                return
            name = f"{self._stem}.jsonl" if self._part == 0 else f"{self._stem}-{self._part:04d}.jsonl"
            self._store.write(name, text)  # a store that fails takes its time, and nobody who adds a line must wait for it
            self._written = len(text)
            if self._written >= PART_BYTES:
                with self._lock:
                    self._part, self._text, self._written = self._part + 1, self._text[len(text) :], 0
