"""A request to stop, kept as a flag that the training checks between steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

__all__ = ["StopFlag"]


class StopFlag:
    """Set by the first SIGINT or SIGTERM, or from any thread."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def set(self, signal_number: int) -> None:
        """Request a stop, as that signal would."""
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """Exit code of a process that this flag has stopped."""
        return 128 + int(self.signal_number or signal.SIGINT)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM set the flag. The second signal has its usual effect."""

        def note(number: int, frame: FrameType | None) -> None:
            self.signal_number = number
            for kept, handler in before.items():
                signal.signal(kept, handler)

        before: dict[int, Any] = {}
        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                try:
                    before[number] = signal.signal(number, note)
                except ValueError:  # only the main thread may set handlers; elsewhere the caller requests the stop
                    continue
                stack.callback(signal.signal, number, before[number])
            yield
