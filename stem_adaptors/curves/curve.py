"""The composition root of `curve`: choose what fits each budget, train on it, and put the results together.

Results are kept in the curve's store under names that hold a digest of what they depend on. So the same command continues after a kill, and
a command with other budgets or more seeds trains only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from tokenshards.pipeline.planning.nesting import refuse_nested_stores
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store, absolute_url, display_url
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.compare_config import MOST_PIXEL_SIDE
from tokenshards.stem_adaptors.comparison.image_sides import ImageSides, OpenRunner
from tokenshards.stem_adaptors.comparison.run_results import Trainings, results_of
from tokenshards.stem_adaptors.comparison.side_data import digest_of
from tokenshards.stem_adaptors.curves.byte_sizes import byte_text
from tokenshards.stem_adaptors.curves.curve_config import TOKENS, CurveRequest, Stock
from tokenshards.stem_adaptors.curves.image_points import ImagePoints
from tokenshards.stem_adaptors.curves.measured_images import labelled_ids, shared_places
from tokenshards.stem_adaptors.curves.points import labelled_images, least_images, trained
from tokenshards.stem_adaptors.curves.result import Curve, Point
from tokenshards.stem_adaptors.data.class_names import class_map
from tokenshards.stem_adaptors.data.labels import require_labels
from tokenshards.stem_adaptors.data.same_tokenizer import require_same_tokenizer
from tokenshards.stem_adaptors.data.selection import Ints

__all__ = ["measured_curve"]

RESULT = "curve.json"
TOKENIZER = "tokenizer"
"""Folder of a dataset."""


def measured_curve(request: CurveRequest, reporter: TerminalReporter, open_runner: OpenRunner, train: Trainings) -> Curve:
    """Return the curve, and keep it as `curve.json` in the store of the request.

    Raises ConfigError where an option or a budget is wrong or there are no labels, OtherTokenizerError where VAL has another tokenizer,
    DoubtError where the images are in grave doubt, and the errors of opening, converting and training.
    """
    request = replace(
        request, data_url=absolute_url(request.data_url), val_url=absolute_url(request.val_url), out_url=absolute_url(request.out_url)
    )
    return _Measuring(request, reporter, open_runner, train).run()


class _Measuring:
    def __init__(self, request: CurveRequest, reporter: TerminalReporter, open_runner: OpenRunner, train: Trainings) -> None:
        self._request, self._reporter, self._open_runner, self._train = request, reporter, open_runner, train
        self._store = Store(request.out_url, storage_options=request.storage_options)
        self._data, self._val = self._opened(request.data_url), self._opened(request.val_url)

    def run(self) -> Curve:
        data, val, request = self._data, self._val, self._request
        require_same_tokenizer(val, data.spec, f"the tokens of {display_url(request.data_url)}")
        require_labels(data, "`pretrain` needs none")
        require_labels(val, "Accuracy needs labels on both sides")
        self._tell_unknown_classes()
        stock = Stock(bytes=int(data.manifest.totals["token_bytes"]), images=len(data) // data.views, labelled=labelled_images(data))
        stock.require_room(request.budgets, *least_images(request.choice, data))
        images = self._images(stock)
        points = [self._tokens(stock, budget) for budget in request.budgets]
        measured = {TOKENS: val}
        if images is not None:
            points = [point for tokens in points for point in (tokens, *images.at(tokens.budget))]
            measured |= images.measured
        for point in points:
            if point.absent:
                self._reporter.say(f"{point.side} at {byte_text(point.budget)}: left out: {point.absent}")
        places = self._places(measured)
        runs = list(dict.fromkeys(run for point in points for run in point.runs))  # budgets above all images share their trainings
        runs.sort(key=lambda run: run.seed)
        results = results_of(runs, self._store, self._train, self._reporter)
        found = Curve.of(request, points, results, places, self._tokenizer_bytes())
        self._store.write(RESULT, json.dumps(found.to_json(), indent=1, sort_keys=True).encode())
        return found

    def _opened(self, url: str) -> TokenDataset:
        dataset = open_dataset(url, storage_options=self._request.storage_options)
        refuse_nested_stores(dataset.store, self._store)
        return dataset

    def _tell_unknown_classes(self) -> None:
        val = self._val
        known_C = class_map(val.classes, self._data.classes, f"--val {val.store.url}", missing_is_error=False)
        lost = sum(count for count, place in zip(val.manifest.class_counts, known_C.tolist(), strict=False) if place < 0)
        if lost:
            self._reporter.say(f"note: --val has {counted(lost, 'image')} of classes that DATA has not, which count as wrong")

    def _tokens(self, stock: Stock, budget: int) -> Point:
        images, request = stock.fitting(budget), self._request
        if stock.budget_for(images + 1) <= budget:
            all_of_them = f"all {counted(images, 'labelled image')} of DATA take {byte_text(round(images * stock.mean))}"
            self._reporter.say(f"note: {byte_text(budget)} is cut: {all_of_them}")
        point = Point(side=TOKENS, budget=budget, images=images, bytes_per_image=stock.mean)
        data = digest_of(self._data, self._val)
        return trained(point, request, side=TOKENS, data=data, train_url=request.data_url, val_url=request.val_url)

    def _images(self, stock: Stock) -> ImagePoints | None:
        """Return the sides of images, None where no images are given."""
        request, size = self._request, self._data.spec.preprocess.size
        if request.images is None:
            return None
        sides = ImageSides(replace(request.images, out_url=request.out_url), self._store, self._open_runner, self._reporter)
        sides.list_val()
        with sides.listed_images(0):
            pass
        found = ImagePoints(request, sides, size)
        if found.files.labelled != stock.labelled:
            here, there = f"--images has {found.files.labelled:,} labelled images", f"DATA has {stock.labelled:,}"
            self._reporter.say(f"note: {here}, {there}; expected the same images on every side")
        if size > MOST_PIXEL_SIDE:
            self._reporter.say(f"note: images have {MOST_PIXEL_SIDE} px a side, those of DATA's tokenizer {size}")
        return found

    def _places(self, measured: Mapping[str, TokenDataset]) -> dict[str, Ints]:
        ids = {place: labelled_ids(dataset) for place, dataset in measured.items()}
        places = shared_places(ids)
        count, most = len(places[TOKENS]), max(map(len, ids.values()))
        if count < most:
            self._reporter.say(f"note: {count:,} of {most:,} images are measured, those that VAL and --val-images both have")
        return places

    def _tokenizer_bytes(self) -> int:
        return sum(max(0, info.size) for info in self._data.store.list(TOKENIZER))
