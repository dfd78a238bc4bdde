"""The results of trainings: those that a store keeps, and those that are missing, which are trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["Kept", "Trainings", "results_of"]


class Kept(Protocol):
    """What is trained for some seconds, and keeps its result in a store."""

    @property
    def key(self) -> str:
        """A digest of everything that the result depends on; the result has it as `run`."""

    @property
    def path(self) -> str:
        """Where the result lies in the store."""

    @property
    def seconds(self) -> float:
        """How long it trains."""

    @property
    def device(self) -> str:
        """Where it trains."""


R = TypeVar("R", bound=Kept)
Trainings: TypeAlias = Callable[[str, dict[str, Any], Sequence[R], Callable[[dict[str, Any]], None]], None]
"""Trains (out URL, storage options, runs) and tells each result."""


def results_of(
    runs: Sequence[R], store: Store, train: Trainings[R], reporter: TerminalReporter, what: str = "training"
) -> dict[R, dict[str, Any]]:
    """Return the result of each run, all of equal minutes on one device. `what`: a run in words. Raises the errors of a training."""
    results = {run: json.loads(store.read(run.path)) for run in runs if store.info(run.path) is not None}
    waiting = [run for run in runs if run not in results]
    if results:
        reporter.say(f"{len(results):,} of {counted(len(runs), what)} kept from before")
    if not waiting:
        return results
    minutes = waiting[0].seconds / 60
    length = "a minute" if minutes == 1 else f"{minutes:g} minutes"
    reporter.say(f"{counted(len(waiting), what)} of {length} each, {waiting[0].device} …")
    by_key = {run.key: run for run in runs}
    reporter.begin(len(runs), len(results), f"{what}s")

    def done(result: dict[str, Any]) -> None:
        results[by_key[result["run"]]] = result
        reporter.count(len(results))

    try:
        train(store.location, store.storage_options, waiting, done)
    finally:
        reporter.end()
    return results
