"""Show a person how a job runs: a bar on a terminal, or else one line every 30 seconds. All output goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tokenshards.pipeline.ledger.progress import RunProgress

__all__ = ["TerminalReporter", "print_table"]

LINE_SECONDS = 30.0
WIDE, BAR, SHORT_BAR = 140, 40, 10
"""Columns of a terminal that has room for the long bar, and of the bars."""
_TIMES = len("0:00:00 ETA 0:00:00")


class TerminalReporter:
    """The Reporter of a conversion for people."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True, emoji=False)
        self._quiet = quiet or sys.stderr is None  # rich would write to stdout if stderr is closed
        self._progress: Progress | None = None
        self._task: Any = None
        self._last_line: float | None = None
        self.said: list[str] = []
        """Lines of `say`, printed or not."""

    def say(self, message: str) -> None:
        """Print one line, above the bar if there is one."""
        self.said.append(message)
        self._print(message)

    def _print(self, message: str) -> None:
        if not self._quiet:
            self._console.print(message, markup=False)

    def begin(self, planned: int | None, done: int, what: str = "images") -> None:
        """Show a bar from `done` to `planned`. Without `planned`, only count."""
        self._last_line = time.monotonic()
        if self._quiet or not self._console.is_terminal:
            return
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(BAR if self._console.width >= WIDE else SHORT_BAR),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._progress.start()
        self._task = self._progress.add_task(what, total=planned, completed=done, rate="")

    def advance(self, progress: RunProgress) -> None:
        """Show the progress of a run, here or on a cluster. Begin a bar if there is none yet."""
        if self._last_line is None:
            self.begin(progress.images_planned, progress.images_before)
            self._last_line = float("-inf")  # a person who joins late wants to see the progress now
        if self._progress is not None:
            shown = self._fitting(f"{progress.rate_text()}{progress.state_text()}", progress)
            self._progress.update(self._task, total=progress.images_planned, completed=progress.images_done, rate=shown)
        elif (now := time.monotonic()) - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self._print(progress.line())

    def _fitting(self, text: str, progress: RunProgress) -> str:
        """Return the parts of a text that fit beside the counts and the times, which rich would cut instead."""
        total = len(str(progress.images_planned or progress.images_done))
        bar = BAR if self._console.width >= WIDE else SHORT_BAR
        room = self._console.width - len("- images ") - bar - (1 + 2 * total + 1) - 1 - (1 + _TIMES)
        parts, kept = text.split("  "), set[int]()
        for place in sorted(range(len(parts)), key=lambda place: "MB/s" in parts[place]):  # the bytes matter least
            if len("  ".join(parts[one] for one in {*kept, place})) <= room:
                kept.add(place)
        return "  ".join(parts[place] for place in sorted(kept))

    def count(self, done: int) -> None:
        """Show how many of the planned items are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done)

    def end(self) -> None:
        """Stop the bar and leave its last state on the screen."""
        self._last_line = None
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _table(rows: Iterable[tuple[str, ...]], header: tuple[str, ...] = ()) -> Table:
    """Return a plain table. The first column holds names, the other columns hold values."""
    rows = list(rows)
    table = Table(show_header=bool(header), box=None, pad_edge=False)
    for index in range(max((len(row) for row in rows), default=1)):
        table.add_column(header[index] if header else "", style="bold" if index == 0 else None, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_table(rows: Iterable[tuple[str, ...]], title: str = "", header: tuple[str, ...] = ()) -> None:
    """Print a table on stdout. If stdout is not a terminal, the table is at most 120 columns wide."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=120)
    if title:  # rich would fold a table's own title to the width of the table
        console.print(title, style="italic", soft_wrap=True)
    console.print(_table(rows, header))
