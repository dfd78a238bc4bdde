"""The output of a command at its end, and a progress bar of shards."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenshards.pipeline.conversion.request import Outcome
    from tokenshards.pipeline.reports.storage_table import StorageReport
    from tokenshards.pipeline.reports.terminal import TerminalReporter

__all__ = ["counted_shards", "doubts_as_json", "finish_run", "print_json", "print_way_out"]


def print_json(value: object) -> None:
    """Print one JSON object on stdout; NaN raises ValueError."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


@contextlib.contextmanager
def doubts_as_json(as_json: bool) -> Iterator[None]:
    """Where a grave doubt stops the command, also print on stdout what was understood, if the user wants JSON."""
    from tokenshards.pipeline.errors import DoubtError

    try:
        yield
    except DoubtError as error:
        if as_json:
            print_json({"understood": error.understood})
        raise


def print_way_out(url: str, report: StorageReport) -> None:
    """Print what to do about quarantined inputs, if there are any."""
    if report.images_quarantined:
        retry = f"; retry them with: tokenshards retry-failed {url}" if report.complete else ""
        print(f"Inputs are in quarantine; list them with: tokenshards quarantine {url}{retry}")


def finish_run(out: str, options: dict[str, Any], outcome: Outcome, as_json: bool, quiet: bool) -> None:
    """Print the storage table of a finished run, or its JSON."""
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.pipeline.storage.store import display_url

    if quiet and not as_json:
        return  # a report needs a listing
    report, rows, value = _report_of(out, options, outcome)
    if as_json:
        print_json(value)
    else:
        print_table(rows, title=f"{display_url(out)}: {'already complete' if outcome.already_complete else 'complete'}")
        print_way_out(display_url(out), report)
        if outcome.already_complete:
            print(f"Nothing was listed again; images that are new since then belong into another OUT, with --tokenizer {display_url(out)}")


def finish_splits(out: str, options: dict[str, Any], outcomes: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Print the storage table of each split of a finished run, or one JSON object of all."""
    places = {name: f"{out.rstrip('/')}/{name}" for name in outcomes}
    if as_json:
        print_json({"splits": {name: _report_of(places[name], options, outcome)[2] for name, outcome in outcomes.items()}})
        return
    for name, outcome in outcomes.items():
        finish_run(places[name], options, outcome, False, quiet)


def _report_of(out: str, options: dict[str, Any], outcome: Any) -> tuple[Any, list[tuple[str, str]], dict[str, Any]]:
    """Return the report of a finished run, as it is, as rows and in JSON types."""
    from tokenshards.pipeline.reports.storage_table import dataset_report
    from tokenshards.pipeline.storage.store import Store

    store = Store(out, storage_options=options)
    rate = None if outcome.already_complete or not outcome.images else outcome.images / max(1e-9, outcome.seconds)
    report = dataset_report(store, rate)
    usage = outcome.usage.rows() if outcome.usage is not None else []
    busy = {} if outcome.usage is None else {stage: round(share, 4) for stage, share in outcome.usage.busy_shares().items()}
    understood = {} if outcome.understood is None else {"understood": outcome.understood}
    return report, [*report.rows(), *usage], {**report.to_json(), "busy": busy, **understood}


@contextlib.contextmanager
def counted_shards(reporter: TerminalReporter) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (shards done, shards in all) that updates a progress bar; the bar ends with the block."""
    begun = False

    def on_shard(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            reporter.begin(total, 0, "shards")
            begun = True
        reporter.count(done)

    try:
        yield on_shard
    finally:
        reporter.end()
