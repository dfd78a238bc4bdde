"""The board between the workers of a cluster and the terminal that started them. News go to the terminal; stop requests go to the workers.

The board is one object in a process of its own; both sides call it. News are JSON objects with a `kind`:

    began {workers}     the workers have found each other         lost {reason}                  some workers died
        say {message}       step {…}     epoch {record}               as the Reporter of a training receives them
    done {result}       stopped {exit_code}                       failed {message, hint, exit_code}    how it ended

Nothing here knows Ray.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeAlias

__all__ = ["Board", "BoardReporter", "News"]

News: TypeAlias = dict[str, Any]
SEND_SECONDS = 0.25
"""Between two calls of a worker."""


class Board:
    """Keeps the job, which workers fetch, and the news of the workers, which the terminal takes."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._news: list[News] = []
        self._stop: int | None = None

    def job(self) -> dict[str, Any]:
        """Return the job as JSON. The board carries the job because it may hold credentials, and Ray shows every configuration it is
        given."""
        return self._job

    def exchange(self, news: list[News]) -> int | None:
        """Leave news. Return the signal that asks the training to stop; None while the training may go on."""
        self._news += news
        return self._stop

    def take(self) -> list[News]:
        """Return the news since the last call."""
        taken, self._news = self._news, []
        return taken

    def stop(self, signal_number: int) -> None:
        """Ask the workers to stop after the current step, with a checkpoint."""
        self._stop = signal_number


class BoardReporter:
    """The Reporter of a worker: collects news, which a thread takes to the board. Use as a context manager.

    `exchange` calls the board's method. `on_stop` is called once, in that thread, with the signal that asks for the stop.
    """

    def __init__(self, exchange: Callable[[list[News]], int | None]) -> None:
        self._exchange = exchange
        self.on_stop: Callable[[int], None] | None = None
        self._guard = threading.Lock()
        self._news: list[News] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="board", daemon=True)

    def __enter__(self) -> BoardReporter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._send()

    def tell(self, kind: str, **fields: Any) -> None:
        """Send news. Of waiting step news only the last one is sent."""
        with self._guard:
            if kind == "step" and self._news and self._news[-1]["kind"] == "step":
                self._news.pop()
            self._news.append({"kind": kind, **fields})

    def say(self, message: str) -> None:
        """Send one line of text."""
        self.tell("say", message=message)

    def step(self, epoch: int, step: int, steps: int, images_per_second: float, loss: float) -> None:
        """Send the place in the epoch."""
        self.tell("step", epoch=epoch, step=step, steps=steps, images_per_second=images_per_second, loss=loss)

    def epoch(self, record: dict[str, Any]) -> None:
        """Send the record of a finished epoch."""
        self.tell("epoch", record=record)

    def _deliver(self) -> None:
        while not self._ended.wait(SEND_SECONDS):
            stop = self._send()
            if stop is not None and self.on_stop is not None:
                self.on_stop(stop)
                self.on_stop = None

    def _send(self) -> int | None:
        with self._guard:
            news, self._news = self._news, []
        return self._exchange(news)
