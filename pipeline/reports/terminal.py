"""What a person sees while a job runs: a bar on a terminal, one line every 30 seconds elsewhere; always on stderr."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["LINE_SECONDS_VARIABLE", "TerminalReporter", "print_table"]

LINE_SECONDS = 30.0
LINE_SECONDS_VARIABLE = "TOKENSHARDS_LINE_SECONDS"
"""Set by a submitted job, whose lines become the bar of the terminal that submitted it."""
_TOLD = re.compile(r"^([\d,]+)(?: of ([\d,]+))? images  (.*?)(?:  ETA .*)?$", re.MULTILINE)


class TerminalReporter:
    """Implements the Reporter of a conversion for people."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True, emoji=False)
        self._quiet = quiet or sys.stderr is None  # rich would take stdout in place of a closed stderr
        self._progress: Progress | None = None
        self._task: Any = None
        self._planned: int | None = None
        self._before = 0
        self._started = 0.0
        self._last_line = 0.0
        self._line_seconds = float(os.environ.get(LINE_SECONDS_VARIABLE, LINE_SECONDS))

    def say(self, message: str) -> None:
        """Print one line, above the bar if there is one."""
        if not self._quiet:
            self._console.print(message, markup=False)

    def begin(self, planned: int | None, done: int, what: str = "images") -> None:
        """Show a bar from `done` to `planned`; without a plan it only counts."""
        self._planned, self._before = planned, done
        self._started = self._last_line = time.monotonic()
        if self._quiet or not self._console.is_terminal:
            return
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._progress.start()
        self._task = self._progress.add_task(what, total=planned, completed=done, rate="")

    def advance(self, seen: int, bytes_in: int, quarantined: int) -> None:
        """Show the totals of this run."""
        now = time.monotonic()
        seconds = max(1e-9, now - self._started)
        rate = f"{seen / seconds:,.0f} images/s  {bytes_in / seconds / 1e6:,.1f} MB/s  {quarantined} quarantined"
        if self._progress is not None:
            self._progress.update(self._task, completed=self._before + seen, rate=rate)
        elif now - self._last_line >= self._line_seconds:
            self._last_line = now
            of = f" of {self._planned:,}" if self._planned is not None else ""
            left = f"  ETA {(self._planned - self._before - seen) * seconds / seen:,.0f} s" if self._planned and seen else ""
            self.say(f"{self._before + seen:,}{of} images  {rate}{left}")

    def count(self, done: int) -> None:
        """Show how many of the planned things are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done)

    def retell(self, log: str) -> None:
        """Show the last progress that the log of a run elsewhere tells, as if it ran here."""
        told = list(_TOLD.finditer(log))
        if not told:
            return
        seen, planned, rate = told[-1].groups()
        if self._progress is None:
            if not self._console.is_terminal:
                self.say(told[-1][0])
                return
            self.begin(int(planned.replace(",", "")) if planned else None, 0)
        if self._progress is not None:
            self._progress.update(self._task, completed=int(seen.replace(",", "")), rate=rate)

    def end(self) -> None:
        """Take the bar away, leaving its last state."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _table(rows: Iterable[tuple[str, ...]], header: tuple[str, ...] = ()) -> Table:
    """Return a plain table; the first column names, the others hold values."""
    rows = list(rows)
    table = Table(show_header=bool(header), box=None, pad_edge=False)
    for index in range(max((len(row) for row in rows), default=1)):
        table.add_column(header[index] if header else "", style="bold" if index == 0 else None, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_table(rows: Iterable[tuple[str, ...]], title: str = "", header: tuple[str, ...] = ()) -> None:
    """Print a table on stdout, as wide as it needs to be where stdout is no terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=120)
    if title:  # as a title of the table it would be folded to the width of the table
        console.print(title, style="italic", soft_wrap=True)
    console.print(_table(rows, header))
