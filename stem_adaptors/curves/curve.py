"""The composition root of `curve`: choose what fits each budget, train on it, and put the results together.

Results are kept in the curve's store under names that hold a digest of what they depend on. So the same command continues after a kill, and
a command with other budgets or more seeds trains only what is new.
"""

from __future__ import annotations

import json
from dataclasses import replace

from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.storage.store import Store, absolute_url
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.image_sides import OpenRunner
from tokenshards.stem_adaptors.comparison.run_results import Trainings, results_of
from tokenshards.stem_adaptors.comparison.timed_run import Run
from tokenshards.stem_adaptors.curves.both_sets import BothSets, listed_pixels, shared_with_note
from tokenshards.stem_adaptors.curves.byte_sizes import byte_text
from tokenshards.stem_adaptors.curves.curve_config import TOKENS, CurveRequest, Stock
from tokenshards.stem_adaptors.curves.image_points import ImagePoints
from tokenshards.stem_adaptors.curves.points import least_images, trained
from tokenshards.stem_adaptors.curves.result import Curve, Point

__all__ = ["measured_curve"]

RESULT = "curve.json"


def measured_curve(request: CurveRequest, reporter: TerminalReporter, open_runner: OpenRunner, train: Trainings[Run]) -> Curve:
    """Return the curve, and keep it as `curve.json` in the store of the request.

    Raises ConfigError where an option or a budget is wrong or there are no labels, OtherTokenizerError where VAL has another tokenizer,
    DoubtError where the images are in grave doubt, and the errors of opening, converting and training.
    """
    request = replace(
        request, data_url=absolute_url(request.data_url), val_url=absolute_url(request.val_url), out_url=absolute_url(request.out_url)
    )
    return _Measuring(request, reporter, open_runner, train).run()


class _Measuring:
    def __init__(self, request: CurveRequest, reporter: TerminalReporter, open_runner: OpenRunner, train: Trainings[Run]) -> None:
        self._request, self._reporter, self._open_runner, self._train = request, reporter, open_runner, train
        self._store = Store(request.out_url, storage_options=request.storage_options)
        self._sets = BothSets.opened(request.data_url, request.val_url, self._store, reporter)

    def run(self) -> Curve:
        sets, request, store = self._sets, self._request, self._store
        stock = sets.stock
        stock.require_room("--bytes", request.budgets, *least_images(request.choice, sets.data))
        images = self._images()
        points = [self._tokens(stock, budget) for budget in request.budgets]
        measured = {TOKENS: sets.val}
        if images is not None:
            points = [point for tokens in points for point in (tokens, *images.at(tokens.budget))]
            measured |= images.measured
        for point in points:
            if point.absent:
                self._reporter.say(f"{point.side} at {byte_text(point.budget)}: left out: {point.absent}")
        places = shared_with_note(measured, self._reporter)
        runs = list(dict.fromkeys(run for point in points for run in point.runs))  # budgets above all images share their trainings
        runs.sort(key=lambda run: run.seed)
        results = results_of(runs, store, self._train, self._reporter)
        found = Curve.of(request, points, results, places, sets.tokenizer_bytes)
        store.write(RESULT, json.dumps(found.to_json(), indent=1, sort_keys=True).encode())
        return found

    def _tokens(self, stock: Stock, budget: int) -> Point:
        images, request = stock.fitting(budget), self._request
        if stock.budget_for(images + 1) <= budget:
            all_of_them = f"all {counted(images, 'labelled image')} of DATA take {byte_text(round(images * stock.mean))}"
            self._reporter.say(f"note: {byte_text(budget)} is cut: {all_of_them}")
        point = Point(side=TOKENS, budget=budget, images=images, bytes_per_image=stock.mean)
        return trained(point, request, side=TOKENS, data=self._sets.digest, train_url=request.data_url, val_url=request.val_url)

    def _images(self) -> ImagePoints | None:
        """Return the sides of images, None where no images are given."""
        request = self._request
        if request.images is None:
            return None
        return ImagePoints(request, listed_pixels(request.images, self._sets, self._store, self._open_runner, self._reporter))
