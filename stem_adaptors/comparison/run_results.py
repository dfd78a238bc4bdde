"""The results of trainings: those that a store keeps, and those that are missing, which are trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.timed_run import Run

__all__ = ["Trainings", "results_of"]

Trainings = Callable[[str, dict[str, Any], Sequence[Run], Callable[[dict[str, Any]], None]], None]
"""Trains (out URL, storage options, runs) and tells each result."""


def results_of(runs: Sequence[Run], store: Store, train: Trainings, reporter: TerminalReporter) -> dict[Run, dict[str, Any]]:
    """Return the result of each run, all of equal minutes on one device. Raises the errors of a training."""
    results = {run: json.loads(store.read(run.path)) for run in runs if store.info(run.path) is not None}
    waiting = [run for run in runs if run not in results]
    if results:
        reporter.say(f"{len(results):,} of {counted(len(runs), 'training')} kept from before")
    if not waiting:
        return results
    minutes = waiting[0].seconds / 60
    length = "a minute" if minutes == 1 else f"{minutes:g} minutes"
    reporter.say(f"{counted(len(waiting), 'training')} of {length} each, {waiting[0].device} …")
    by_key = {run.key: run for run in runs}
    reporter.begin(len(runs), len(results), "trainings")

    def done(result: dict[str, Any]) -> None:
        results[by_key[result["run"]]] = result
        reporter.count(len(results))

    try:
        train(store.location, store.storage_options, waiting, done)
    finally:
        reporter.end()
    return results
