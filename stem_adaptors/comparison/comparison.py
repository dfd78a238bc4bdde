"""The composition root of `compare`: make the sides, measure them, train on them, and put the results together.

Everything is kept in the comparison's store under names that hold a digest of what it depends on. So the same command continues after a
kill, and another command takes over what both have in common.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tokenshards.pipeline.errors import IncompleteError
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.storage.store import Store, absolute_url
from tokenshards.pipeline.tokenizers.pixels.pixel_values import PixelValues
from tokenshards.stem_adaptors.comparison.compare_config import PIXELS, CompareRequest, Side
from tokenshards.stem_adaptors.comparison.contestants import contestant_of, keep_tokenizer
from tokenshards.stem_adaptors.comparison.image_sides import ImageSides, OpenRunner, pixels_of_size
from tokenshards.stem_adaptors.comparison.measures import fidelity, stored_bytes
from tokenshards.stem_adaptors.comparison.paired import packed
from tokenshards.stem_adaptors.comparison.probe import linear_probe
from tokenshards.stem_adaptors.comparison.result import Comparison
from tokenshards.stem_adaptors.comparison.run_results import Trainings, results_of
from tokenshards.stem_adaptors.comparison.side_data import SideData
from tokenshards.stem_adaptors.comparison.timed_run import Run

__all__ = ["compare_tokenizers"]

EQUAL_BYTES = 1.05
"""Tokenizers whose bytes differ by no more than this factor meet files of one size, that of the largest."""
RESULT = "comparison.json"


def compare_tokenizers(request: CompareRequest, reporter: TerminalReporter, open_runner: OpenRunner, train: Trainings[Run]) -> Comparison:
    """Return the comparison, and keep it as `comparison.json` in the store of the request.

    Raises ConfigError where a tokenizer or an option is wrong or the images have no labels, DoubtError where the input is in grave doubt,
    and the errors of fitting, converting and training.
    """
    return _Making(replace(request, out_url=absolute_url(request.out_url)), reporter, open_runner, train).run()


class _Making:
    def __init__(self, request: CompareRequest, reporter: TerminalReporter, open_runner: OpenRunner, train: Trainings[Run]) -> None:
        self._request, self._reporter, self._train = request, reporter, train
        self._store = Store(request.out_url, storage_options=request.out_options)
        self._images = ImageSides(request.sources, self._store, open_runner, reporter)
        self._data: dict[str, SideData] = {}

    def run(self) -> Comparison:
        request, say = self._request, self._reporter.say
        options = request.tokenizer_options
        contestants = [contestant_of(text, sample=request.sample, out=self._store, storage_options=options) for text in request.tokenizers]
        self._images.list_val()
        with self._images.listed_images(request.sample) as (source, sample):
            fits = []
            for who in contestants:
                place = who.place(self._images.digest)
                seconds = keep_tokenizer(who, self._store, place, source, sample, storage_options=options, say=say)
                fits.append((who.name, place, seconds))
        sides = [self._token_side(name, place, seconds) for name, place, seconds in fits]
        sides += self._baselines(sides)
        return self._finished(sides)

    def _token_side(self, name: str, place: str, fit_seconds: float | None) -> Side:
        data = self._tokenized(name, place)
        facts = self._kept(place, "facts", data, lambda: self._token_facts(name, place, data))
        return Side(
            name=name,
            kind="tokens",
            place=place,
            data=data.digest,
            size=data.train.spec.preprocess.size,
            stored_bytes=facts["bytes"],
            facts={**facts, "fit_cpu_seconds": fit_seconds},
        )

    def _token_facts(self, name: str, place: str, data: SideData) -> dict[str, Any]:
        self._reporter.say(f"{name}: measuring bytes and fidelity …")
        return {**stored_bytes(data.train, data.val, data.tokenizer, self._request.stored_images), **self._fidelity(place)}

    def _fidelity(self, place: str) -> dict[str, Any]:
        request = self._request
        return fidelity(self._images.tokenizer_folder(place), request.val_url, replace(request.val, yes=True))

    def _tokenized(self, name: str, place: str) -> SideData:
        self._data[place] = self._images.tokenized(name, place)
        return self._data[place]

    def _kept(self, place: str, name: str, data: SideData, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return self._images.kept(place, name, self._depends(data), make)

    def _depends(self, data: SideData) -> str:
        return f"{data.digest} {self._request.stored_images}"

    def _baselines(self, sides: Sequence[Side]) -> list[Side]:
        """Return JPEG and WebP at the bytes of each tokenizer, and pixels, in the size of the largest tokenizer."""
        request = self._request
        if not request.against:
            return []
        size = max(side.size for side in sides)
        pixels = self._pixel_side(PIXELS, pixels_of_size(size))
        found, data = [], self._data[pixels.place]
        for budget in _grouped([side.stored_bytes for side in sides if side.stored_bytes is not None]):
            for format in request.against:
                if format != PIXELS:
                    found.append(self._file_side(format, budget, size, data))
        return found + ([pixels] if PIXELS in request.against else [])

    def _file_side(self, format: str, budget: float, size: int, pixels: SideData) -> Side:
        name = f"{format}:{budget:.0f}" if budget >= 100 else f"{format}:{budget:.3g}"  # names of other budgets differ
        found = self._images.small_file(name, format, budget, pixels, pixels.val, self._depends(pixels))
        if found is None:
            return Side(name=name, kind=format, place="", budget=budget, absent=f"no resolution gets files down to {budget:.3g} bytes")
        side = self._pixel_side(name, pixels_of_size(size, found[0]))
        return replace(side, kind=format, budget=budget, stored_bytes=found[1])

    def _pixel_side(self, name: str, tokenizer: PixelValues) -> Side:
        place, data = self._images.pixels(name, tokenizer)
        self._data[place] = data
        facts: dict[str, Any] = {"file": None if tokenizer.file is None else tokenizer.file.to_json()}
        if tokenizer.file is not None:
            facts |= self._kept(place, "facts", data, lambda: self._fidelity(place))
        return Side(name=name, kind=PIXELS, place=place, data=data.digest, size=tokenizer.spec.preprocess.size, facts=facts)

    def _finished(self, sides: Sequence[Side]) -> Comparison:
        request, say = self._request, self._reporter.say
        present = [side for side in sides if not side.absent]
        for side in sides:
            if side.absent:
                say(f"{side.name}: left out: {side.absent}")
        say("linear probes …")
        probes = {side.place: self._probe(side) for side in present}
        _refuse_other_images(present, probes)
        found = Comparison.of(request, sides, probes, results_of(self._runs(present), self._store, self._train, self._reporter))
        self._store.write(RESULT, json.dumps(found.to_json(), indent=1, sort_keys=True).encode())
        return found

    def _probe(self, side: Side) -> dict[str, Any]:
        data = self._data[side.place]

        def measured() -> dict[str, Any]:
            right_N = linear_probe(data.train, data.val)
            return {"right": packed(right_N), "images": len(right_N), "top1": round(float(np.mean(right_N)), 5)}

        return self._kept(side.place, "probe", data, measured)

    def _runs(self, sides: Sequence[Side]) -> list[Run]:
        request = self._request
        if not request.minutes:
            return []
        seconds = 60 * request.minutes
        found = (
            Run(side=side.place, data=side.data, seed=seed, seconds=seconds, device=request.device)
            for seed in range(request.seeds)
            for side in sides
        )
        return list(dict.fromkeys(found))  # one file may be the best for two budgets


def _refuse_other_images(sides: Sequence[Side], probes: Mapping[str, dict[str, Any]]) -> None:
    """Raise IncompleteError where the sides did not measure equally many images: their differences would pair different images."""
    counts = {side.name: probes[side.place]["images"] for side in sides}
    few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[few] < counts[many]:
        raise IncompleteError(
            f"{few} has tokens of {counts[few]:,} labelled images of --val and {many} of {counts[many]:,}; expected the same images on "
            "every side. Leave out the images that one tokenizer cannot encode, or leave out that tokenizer"
        )


def _grouped(sizes: Sequence[float]) -> Iterator[float]:
    """Yield the largest of each group of nearly equal sizes, ascending."""
    group: list[float] = []
    for size in sorted(sizes):
        if group and size > EQUAL_BYTES * group[0]:
            yield group[-1]
            group = []
        group.append(size)
    if group:
        yield group[-1]
