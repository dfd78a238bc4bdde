"""A thread that makes whole batches ahead of their consumer."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from tokenshards.pipeline.errors import ConfigError

__all__ = ["Prefetcher"]

T = TypeVar("T")

EXIT_SECONDS = 5.0


class Prefetcher(Generic[T]):
    """Iterate over `source`; one thread makes up to `depth` items ahead. A depth of 0 makes items in the calling thread.

    An error of the source reaches the consumer after the items made before the error. The thread ends with the source, with `close`, when
    this object is collected, and at the interpreter's exit.
    """

    def __init__(self, source: Iterator[T], depth: int) -> None:
        self._source = source
        self._closed = False
        self._line: _Line[T] | None = None
        if depth > 0:
            self._line = _Line(depth)
            thread = threading.Thread(target=_fill, args=(self._line, source), name="tokenshards-prefetch", daemon=True)
            # A daemon thread inside native code can abort an interpreter that shuts down, so exit waits for the current item.
            self._stop = weakref.finalize(self, _stop, self._line, thread, EXIT_SECONDS)
            self._thread = thread
            thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._closed:
            raise ConfigError("this iteration has ended because a newer one of the same loader began; use one iterator at a time")
        return next(self._source) if self._line is None else self._line.take()

    def close(self) -> None:
        """Stop the thread and wait for the item that the thread is making."""
        self._closed = True
        if self._line is not None:
            self._stop.detach()
            _stop(self._line, self._thread, None)


class _Line(Generic[T]):
    """The items that are made and not yet taken; consumer and thread share this object."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.items: deque[T] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.ended = False
        self.error: BaseException | None = None

    def take(self) -> T:
        with self.changed:
            while not self.items and not self.ended:
                self.changed.wait()
            if self.items:
                item = self.items.popleft()
                self.changed.notify()
                return item
            error, self.error = self.error, None
        raise error or StopIteration

    def put(self, item: T) -> bool:
        """Add an item, waiting for room; return False once the consumer wants no more items."""
        with self.changed:
            while len(self.items) >= self.depth and not self.closed:
                self.changed.wait()
            if not self.closed:
                self.items.append(item)
                self.changed.notify()
            return not self.closed


def _fill(line: _Line[Any], source: Iterator[Any]) -> None:
    try:
        for item in source:
            if not line.put(item):
                break
    except BaseException as error:
        line.error = error
    finally:
        with line.changed:
            line.ended = True
            line.changed.notify()


def _stop(line: _Line[Any], thread: threading.Thread, seconds: float | None) -> None:
    with line.changed:
        line.closed = True
        line.items.clear()
        line.changed.notify_all()
    if thread is not threading.current_thread():
        thread.join(seconds)
