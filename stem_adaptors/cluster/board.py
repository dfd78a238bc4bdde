"""The board between the workers of a cluster and the terminal that started them: news goes one way, the wish to stop the other.

It is one object in a process of its own, which both sides call. News are JSON objects with a `kind`:

    began {workers}     the workers have found each other         lost {reason}                  some of them died
    say {message}       step {…}     epoch {record}               as the Reporter of a training is told
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
    """Keeps the job for the workers, who come to fetch it, and their news for the terminal."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._news: list[News] = []
        self._stop: int | None = None

    def job(self) -> dict[str, Any]:
        """Return the job as JSON. It may hold credentials: they are here so that they stand in no configuration that Ray shows."""
        return self._job

    def exchange(self, news: list[News]) -> int | None:
        """Leave news; return the signal by which the training is to stop, None while it may go on."""
        self._news += news
        return self._stop

    def take(self) -> list[News]:
        """Return the news since the last call."""
        taken, self._news = self._news, []
        return taken

    def stop(self, signal_number: int) -> None:
        """Ask the workers to stop after the step in hand, with a checkpoint."""
        self._stop = signal_number


class BoardReporter:
    """The Reporter of a worker: gathers what it is told, and a thread takes it to the board. Use as a context manager.

    `exchange` calls the board's method; `on_stop` is called in that thread, once, with the signal by which to stop.
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
        """Send news; of steps only the last one that is waiting."""
        with self._guard:
            if kind == "step" and self._news and self._news[-1]["kind"] == "step":
                self._news.pop()
            self._news.append({"kind": kind, **fields})

    def say(self, message: str) -> None:
        """Send one line."""
        self.tell("say", message=message)

    def step(self, epoch: int, step: int, steps: int, images_per_second: float, loss: float) -> None:
        """Send where the epoch is."""
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
