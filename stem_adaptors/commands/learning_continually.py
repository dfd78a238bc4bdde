"""`tokenshards.continual`: continual learning is measured, and the results written. The command `continual` calls the same code."""

from __future__ import annotations

import json

from tokenshards.pipeline.commands.process import open_runner, worker_count
from tokenshards.pipeline.commands.python_calls import as_function
from tokenshards.pipeline.config import RayConfig
from tokenshards.pipeline.devices import choose_device
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.stem_adaptors.commands.continual_options import ContinualOptions
from tokenshards.stem_adaptors.commands.written_files import Writers, checked_places, write_places
from tokenshards.stem_adaptors.comparison.local_runs import run_locally
from tokenshards.stem_adaptors.continual.chain_training import train_chain
from tokenshards.stem_adaptors.continual.continual import measured_continual
from tokenshards.stem_adaptors.continual.plot import plot_png
from tokenshards.stem_adaptors.continual.result import Continual
from tokenshards.stem_adaptors.continual.table import as_html, as_markdown

__all__ = ["continual", "run_continual"]

WRITERS: Writers[Continual] = {
    ".html": lambda found: as_html(found, plot_png(found)).encode(),
    ".md": lambda found: as_markdown(found).encode(),
    ".png": plot_png,
    ".json": lambda found: json.dumps(found.to_json(), indent=1, sort_keys=True).encode(),
}


@as_function(ContinualOptions)
def continual(options: ContinualOptions) -> Continual:
    """Measure continual learning, as the command `continual` does, and return a Continual. Called again, it continues.

    >>> found = tokenshards.continual("photos.tokens", val="photos.tokens", replay="9kB", steps=3, out="continual", minutes=0.01, seeds=1)
    >>> found.steps, found.rows[1].images * found.rows[1].bytes_per_image < 9000, found.rows[1].figures is not None
    (3, True, True)

    Raises the errors of `tokenshards.pipeline.errors`.
    """
    return run_continual(options)


def run_continual(options: ContinualOptions) -> Continual:
    """Measure as the options say, and write the files of `--to`. Raises what `continual` raises."""
    places = checked_places(options.to, WRITERS)
    request = options.request()
    choose_device(request.device)  # a missing GPU is told before the work
    workers = worker_count(options.workers) if request.device == "cpu" else 1
    found = measured_continual(
        request,
        TerminalReporter(quiet=options.quiet),
        lambda run: open_runner("local", run, RayConfig()),
        lambda out, stores, runs, done: run_locally(train_chain, out, stores, runs, workers, done),
    )
    write_places(places, WRITERS, found)
    return found
