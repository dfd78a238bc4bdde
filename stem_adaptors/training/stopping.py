"""The wish that a training may stop, as a flag that it looks at between steps."""

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
        """Wish for a stop, as that signal does."""
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """What a process ends with that was stopped so."""
        return 128 + int(self.signal_number or signal.SIGINT)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into the flag; the second one works as ever."""

        def note(number: int, frame: FrameType | None) -> None:
            self.signal_number = number
            for kept, handler in before.items():
                signal.signal(kept, handler)

        before: dict[int, Any] = {}
        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                try:
                    before[number] = signal.signal(number, note)
                except ValueError:  # not the main thread: whoever runs it there stops it
                    continue
                stack.callback(signal.signal, number, before[number])
            yield
