"""`tokenshards.curve`: accuracy for budgets of bytes is measured, and the results written. The command `curve` calls the same code."""

from __future__ import annotations

import json

from tokenshards.pipeline.commands.process import open_runner, worker_count
from tokenshards.pipeline.commands.python_calls import as_function
from tokenshards.pipeline.config import RayConfig
from tokenshards.pipeline.devices import choose_device
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.stem_adaptors.commands.curve_options import CurveOptions
from tokenshards.stem_adaptors.commands.written_files import Writers, checked_places, write_places
from tokenshards.stem_adaptors.comparison.local_runs import run_locally
from tokenshards.stem_adaptors.comparison.timed_run import train_run
from tokenshards.stem_adaptors.curves.curve import measured_curve
from tokenshards.stem_adaptors.curves.plot import plot_png
from tokenshards.stem_adaptors.curves.result import Curve
from tokenshards.stem_adaptors.curves.table import as_html, as_markdown

__all__ = ["curve", "run_curve"]

WRITERS: Writers[Curve] = {
    ".html": lambda found: as_html(found, plot_png(found)).encode(),
    ".md": lambda found: as_markdown(found).encode(),
    ".png": plot_png,
    ".json": lambda found: json.dumps(found.to_json(), indent=1, sort_keys=True).encode(),
}


@as_function(CurveOptions)
def curve(options: CurveOptions) -> Curve:
    """Measure accuracy for budgets of bytes, as the command `curve` does, and return a Curve. Called again, it continues.

    >>> found = tokenshards.curve("photos.tokens", val="photos.tokens", bytes="9kB", out="curve", minutes=0.02, seeds=1)
    >>> found.rows[0].images * found.rows[0].bytes_per_image < 9000, found.rows[0].top1 is not None
    (True, True)

    Raises the errors of `tokenshards.pipeline.errors`.
    """
    return run_curve(options)


def run_curve(options: CurveOptions) -> Curve:
    """Measure as the options say, and write the files of `--to`. Raises what `curve` raises."""
    places = checked_places(options.to, WRITERS)
    request = options.request()
    choose_device(request.device)  # a missing GPU is told before the work
    workers = worker_count(options.workers) if request.device == "cpu" else 1
    found = measured_curve(
        request,
        TerminalReporter(quiet=options.quiet),
        lambda run: open_runner("local", run, RayConfig()),
        lambda out, stores, runs, done: run_locally(train_run, out, stores, runs, workers, done),
    )
    write_places(places, WRITERS, found)
    return found
