"""`tokenshards.compare`: tokenizers are compared, and the results written. The command `compare` calls the same code."""

from __future__ import annotations

import functools
import json

from tokenshards.pipeline.commands.process import open_runner, worker_count
from tokenshards.pipeline.commands.python_calls import as_function
from tokenshards.pipeline.config import RayConfig
from tokenshards.pipeline.devices import choose_device
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.stem_adaptors.commands.compare_options import CompareOptions
from tokenshards.stem_adaptors.commands.written_files import Writers, checked_places, write_places
from tokenshards.stem_adaptors.comparison.comparison import compare_tokenizers
from tokenshards.stem_adaptors.comparison.plot import plot_png
from tokenshards.stem_adaptors.comparison.result import Comparison
from tokenshards.stem_adaptors.comparison.run_results import Trainings
from tokenshards.stem_adaptors.comparison.table import as_html, as_markdown
from tokenshards.stem_adaptors.comparison.timed_run import Run, train_run

__all__ = ["compare", "run_comparison"]

WRITERS: Writers[Comparison] = {
    ".html": lambda found: as_html(found, plot_png(found)).encode(),
    ".md": lambda found: as_markdown(found).encode(),
    ".png": plot_png,
    ".json": lambda found: json.dumps(found.to_json(), indent=1, sort_keys=True).encode(),
}


@as_function(CompareOptions)
def compare(options: CompareOptions) -> Comparison:
    """Compare tokenizers on the same images, as the command `compare` does, and return a Comparison. Called again, it continues.

    >>> found = tokenshards.compare("patch-kmeans", images="photos", val="photos", out="comparison", minutes=0, against="none")
    >>> found.rows[0].probe is not None, found.rows[0].top1
    (True, None)

    Raises the errors of `tokenshards.pipeline.errors`.
    """
    return run_comparison(options)


def run_comparison(options: CompareOptions) -> Comparison:
    """Compare as the options say, and write the files of `--to`. Raises what `compare` raises."""
    places = checked_places(options.to, WRITERS)
    request, cluster = options.request(), RayConfig(address=options.address)
    open_runner(options.runner, request.run, cluster)  # a wrong name, or a missing Ray, is told before the work, as is a missing GPU
    if options.runner == "local" and request.minutes:
        choose_device(request.device)
    found = compare_tokenizers(
        request, TerminalReporter(quiet=options.quiet), lambda run: open_runner(options.runner, run, cluster), _trainings(options)
    )
    write_places(places, WRITERS, found)
    return found


def _trainings(options: CompareOptions) -> Trainings[Run]:
    if options.runner == "ray":
        from tokenshards.stem_adaptors.comparison.ray_runs import run_on_ray

        return functools.partial(run_on_ray, options.address)
    from tokenshards.stem_adaptors.comparison.local_runs import run_locally

    workers = worker_count(options.workers)
    return lambda out, stores, runs, done: run_locally(train_run, out, stores, runs, workers if options.device == "cpu" else 1, done)
