"""`tokenshards.evaluate`: the accuracy of a run on token shards or images. The command `evaluate` calls the same code."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tokenshards.pipeline.commands.options import parse_options
from tokenshards.pipeline.commands.process import worker_count
from tokenshards.pipeline.commands.python_calls import as_function
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.conversion.request import TokenizeRequest
from tokenshards.pipeline.conversion.tokenize import Conversion
from tokenshards.pipeline.devices import choose_device
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.shards.dataset import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.commands.evaluate_options import EvaluateOptions
from tokenshards.stem_adaptors.commands.evaluation_report import EvaluationReport, evaluate_run, require_confusion

__all__ = ["evaluate", "run_evaluation"]


@as_function(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> EvaluationReport:
    """Measure a run on token shards or on images, as the command `evaluate` does, and return an EvaluationReport.

    >>> trained = tokenshards.train("photos.tokens", "measured", epochs=1, set={"model.depth": 1})
    >>> report = tokenshards.evaluate("measured", "more.tokens")
    >>> report.accuracy.images, 0 <= report.accuracy.top1 <= 1
    (12, True)
    >>> tokenshards.evaluate("measured", images="more_photos", workers=1).accuracy.top1 == report.accuracy.top1
    True

    Classes are matched by name, whatever their numbers in the dataset. Raises the errors of `tokenshards.pipeline.errors`.
    """
    return run_evaluation(options)


def run_evaluation(options: EvaluateOptions) -> EvaluationReport:
    """Measure as the options say, and draw the matrix that they ask for. Raises what `evaluate` raises."""
    stores = parse_options(options.storage_option)
    if (options.data is None) == (options.images is None):
        raise ConfigError("evaluate takes either a DATA argument or --images DIR; expected exactly one of them")
    store = Store(options.run, storage_options=stores)
    place = choose_device(options.device)
    if options.confusion is not None:
        require_confusion(store)
    how: dict[str, Any] = {"weights": options.weights, "device": place, "batch_size": options.batch_size}
    how["confusion"] = options.confusion is not None
    if options.data is not None:
        report = evaluate_run(store, open_dataset(options.data, storage_options=stores), **how)
    else:
        with tempfile.TemporaryDirectory(prefix="tokenshards-evaluate-") as folder:
            _tokenize_for(options, str(options.images), folder, stores)
            report = evaluate_run(store, open_dataset(folder), **how)
    if options.confusion is not None:
        target = Path(options.confusion).resolve()
        Store(str(target.parent)).write(target.name, report.confusion_png())
    return report


def _tokenize_for(options: EvaluateOptions, images: str, folder: str, stores: dict[str, Any]) -> None:
    """Tokenize images into a temporary dataset with the tokenizer of a run, in exactly the way that made the run's training set."""
    request = TokenizeRequest(
        source_url=images,
        out_url=folder,
        tokenizer_url=f"{options.run.rstrip('/')}/tokenizer",
        source=options.config(images, options.storage_option),
        run=RunConfig(workers=worker_count(options.workers), max_bad=1.0),
        tokenizer_options=stores,
    )
    reporter = TerminalReporter(quiet=options.quiet)
    outcome = Conversion(request, reporter).run()
    if failed := outcome.manifest.totals["images_quarantined"]:
        reporter.say(f"{counted(failed, 'image cannot be read and is', 'images cannot be read and are')} left out")
