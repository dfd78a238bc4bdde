"""Writes objects of a run in a thread, in order, while the training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["BackgroundWriter"]


class BackgroundWriter:
    """One thread that does one piece of work at a time.

    The caller gives work that holds copies: the training changes its tensors meanwhile. At most one piece waits, so that slow storage slows
    the training down instead of filling the memory. An error of the work is raised by the next call.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenshards-checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Do the work soon. Waits for the work before it; raises the error of that work."""
        self.wait()
        self._pending = self._thread.submit(work)

    def wait(self) -> None:
        """Wait for all work; raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for all work, and end the thread. Raises the error of the last work."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
