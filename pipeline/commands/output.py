"""The output of a command at its end, and a progress bar of shards."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenshards.pipeline.conversion.request import Outcome
    from tokenshards.pipeline.reports.terminal import TerminalReporter

__all__ = ["counted_shards", "doubts_as_json", "finish_run", "print_json", "print_way_out", "way_to_retry"]


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


def way_to_retry(url: str, *, closed: bool) -> str:
    """Return how to retry mended inputs. `closed`: the first generation has its manifest, without which nothing can be retried."""
    if closed:
        return f"retry them with: tokenshards retry-failed {url}"
    return (
        "retry them once the job is complete: first run the same `tokenshards tokenize` again (after exit code 5 with the larger --max-bad "
        f"that its message names), then: tokenshards retry-failed {url}"
    )


def print_way_out(url: str, quarantined: int, *, closed: bool) -> None:
    """Print what to do about quarantined inputs, if there are any."""
    if quarantined:
        print(f"Inputs are in quarantine; list them with: tokenshards quarantine {url}; {way_to_retry(url, closed=closed)}")


def finish_run(out: str, options: dict[str, Any], outcome: Outcome, as_json: bool, quiet: bool) -> None:
    """Print the storage table of a finished run, or its JSON."""
    from tokenshards.pipeline.reports.run_report import report_of
    from tokenshards.pipeline.reports.terminal import print_table

    if quiet and not as_json:
        return  # a report needs a listing
    report = report_of(out, options, outcome)
    if as_json:
        print_json(report.to_json())
    else:
        print_table(report.rows, title=f"{report.url}: {'already complete' if report.already_complete else 'complete'}")
        print_way_out(report.url, report.quarantined, closed=bool(report.value.get("complete")))
        if report.already_complete:
            print(f"Nothing was listed again; images that are new since then belong into another OUT, with --tokenizer {report.url}")


def finish_splits(out: str, options: dict[str, Any], outcomes: dict[str | None, Outcome], as_json: bool, quiet: bool) -> None:
    """Print the storage table of each split of a finished run, or one JSON object of all."""
    from tokenshards.pipeline.reports.run_report import join_reports, report_of

    places = {str(name): f"{out.rstrip('/')}/{name}" for name in outcomes}
    if as_json:
        parts = {name: report_of(place, options, outcomes[name]) for name, place in places.items()}
        print_json(join_reports(out, parts, ()).to_json())
        return
    for name, place in places.items():
        finish_run(place, options, outcomes[name], False, quiet)


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
