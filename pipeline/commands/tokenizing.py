"""`tokenshards.tokenize`: the options of a conversion become its request. The command `tokenize` calls the same code."""

from __future__ import annotations

from tokenshards.pipeline.commands.process import open_runner
from tokenshards.pipeline.commands.python_calls import as_function
from tokenshards.pipeline.commands.tokenize_options import TokenizeOptions
from tokenshards.pipeline.conversion.request import Outcome
from tokenshards.pipeline.conversion.split_runs import tokenize_splits
from tokenshards.pipeline.conversion.tokenize import Conversion
from tokenshards.pipeline.reports.run_report import TokenizeReport, join_reports, report_of
from tokenshards.pipeline.reports.terminal import TerminalReporter

__all__ = ["run_conversions", "tokenize"]


@as_function(TokenizeOptions)
def tokenize(options: TokenizeOptions) -> TokenizeReport:
    """Turn images into token shards, as the command `tokenize` does, and return a TokenizeReport. Called again, it continues.

    >>> report = tokenshards.tokenize("photos", "small.tokens", levels=1, workers=1)
    >>> report.images, report.understood["noun"]
    (72, 'image')

    Raises the errors of `tokenshards.pipeline.errors`; DoubtError, whose attribute `understood` says what was seen, where the input may be
    meant otherwise than it is understood.
    """
    reporter = TerminalReporter(quiet=options.quiet)
    outcomes = run_conversions(options, reporter)
    stores, said = options.stores_of_out(), tuple(reporter.said)
    if not options.splits:
        return report_of(options.out, stores, outcomes[None], said)
    places = {str(name): f"{options.out.rstrip('/')}/{name}" for name in outcomes}
    parts = {name: report_of(place, stores, outcomes[name]) for name, place in places.items()}
    return join_reports(options.out, parts, said)


def run_conversions(options: TokenizeOptions, reporter: TerminalReporter) -> dict[str | None, Outcome]:
    """Make or continue the dataset, or one per split, and return the outcomes by split; without splits the key is None."""
    request, cluster = options.request(), options.cluster()
    if options.splits:
        return dict(tokenize_splits(request, reporter, lambda: open_runner(options.runner, request.run, cluster)).items())
    return {None: Conversion(request, reporter, open_runner(options.runner, request.run, cluster)).run()}
