"""The composition root of `compare`: make the sides, measure them, train on them, and put the results together.

Everything is kept in the comparison's store under names that hold a digest of what it depends on. So the same command continues after a
kill, and another command takes over what both have in common.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.config import RunConfig, SourceConfig
from tokenshards.pipeline.conversion.understand import understand
from tokenshards.pipeline.errors import ConfigError, IncompleteError
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.planning.nesting import refuse_nesting
from tokenshards.pipeline.planning.planner import Listing
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.reports.quarantine import quarantined_inputs
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.runners.base import Runner
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.sources.pixel_depth import settle_sixteen_bit
from tokenshards.pipeline.storage.store import Store, absolute_url, display_url
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.pixels.pixel_values import PixelValues
from tokenshards.pipeline.tokenizers.pixels.small_file import SmallFile
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.compare_config import MOST_PIXEL_SIDE, PIXELS, CompareRequest, Side
from tokenshards.stem_adaptors.comparison.contestants import contestant_of, keep_tokenizer
from tokenshards.stem_adaptors.comparison.file_budget import best_file
from tokenshards.stem_adaptors.comparison.measures import fidelity, file_bytes, stored_bytes
from tokenshards.stem_adaptors.comparison.paired import packed
from tokenshards.stem_adaptors.comparison.probe import linear_probe
from tokenshards.stem_adaptors.comparison.result import Comparison
from tokenshards.stem_adaptors.comparison.side_data import Counted, SideData, tokenized
from tokenshards.stem_adaptors.comparison.timed_run import Run
from tokenshards.stem_adaptors.data.labels import has_labels

__all__ = ["OpenRunner", "Trainings", "compare_tokenizers"]

OpenRunner = Callable[[RunConfig], Runner]
Trainings = Callable[[str, dict[str, Any], Sequence[Run], Callable[[dict[str, Any]], None]], None]
"""Trains (out URL, storage options, runs) and tells each result."""

CHOSEN_ON = 100
"""Training images on which the settings of a file are chosen."""
EQUAL_BYTES = 1.05
"""Tokenizers whose bytes differ by no more than this factor meet files of one size, that of the largest."""
RESULT = "comparison.json"


def compare_tokenizers(request: CompareRequest, reporter: TerminalReporter, open_runner: OpenRunner, train: Trainings) -> Comparison:
    """Return the comparison, and keep it as `comparison.json` in the store of the request.

    Raises ConfigError where a tokenizer or an option is wrong or the images have no labels, DoubtError where the input is in grave doubt,
    and the errors of fitting, converting and training.
    """
    return _Making(replace(request, out_url=absolute_url(request.out_url)), reporter, open_runner, train).run()


class _Making:
    def __init__(self, request: CompareRequest, reporter: TerminalReporter, open_runner: OpenRunner, train: Trainings) -> None:
        self._request, self._reporter, self._open_runner, self._train = request, reporter, open_runner, train
        self._store = Store(request.out_url, storage_options=request.out_options)
        self._images = ""
        self._data: dict[str, SideData] = {}

    def run(self) -> Comparison:
        request, say = self._request, self._reporter.say
        options = request.tokenizer_options
        contestants = [contestant_of(text, sample=request.sample, out=self._store, storage_options=options) for text in request.tokenizers]
        with self._listed(request.val_url, request.val, "--val", 0) as (_, _, val_digest):
            pass
        with self._listed(request.images_url, request.images, "--images", request.sample) as (source, sample, digest):
            if digest == val_digest:
                say("note: --images and --val are the same, so that figures tell how well images are remembered")
            self._images = sha256_hex(f"{digest} {val_digest}".encode())
            fits = []
            for who in contestants:
                place = who.place(self._images)
                seconds = keep_tokenizer(who, self._store, place, source, sample, storage_options=options, say=say)
                fits.append((who.name, place, seconds))
        sides = [self._token_side(name, place, seconds) for name, place, seconds in fits]
        sides += self._baselines(sides)
        return self._finished(sides)

    @contextmanager
    def _listed(self, url: str, config: SourceConfig, option: str, sample: int) -> Iterator[tuple[ImageSource, list[PlanRow], str]]:
        """List a source, tell what was understood of it, and give the source, its sample and the digest of all its rows."""
        refuse_nesting(url, config, self._store)
        source = open_source(url, config)
        rows = Counted(source.list_rows())
        with Listing(rows, order_seed=0, keep_order=source.ordered, sample=sample, sample_seed=0) as listing:
            settle_sixteen_bit(source, listing.sample or listing.spread)
            self._reporter.say(f"{option}:")
            understand(source, config, self._reporter.say)
            if source.summary.unlabelled and not source.summary.classes:  # what lies inside tars is seen later
                raise _no_labels(option, url, "label")
            settings = json.dumps(config.planned(), sort_keys=True, default=str)
            yield source, listing.sample, sha256_hex(f"{rows.digest} {settings}".encode())

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
        return fidelity(self._tokenizer_folder(place), request.val_url, replace(request.val, yes=True))

    def _tokenizer_folder(self, place: str) -> Store:
        return Store(f"{self._store.location}/{place}/tokenizer", storage_options=self._store.storage_options)

    def _tokenized(self, name: str, place: str) -> SideData:
        request = self._request
        found = tokenized(request, self._store, place, name, lambda: self._open_runner(request.run), self._reporter)
        if not has_labels(found.train):
            raise _no_labels("--images", request.images_url, "label")
        known, labelled = sum(found.val.manifest.class_counts[: len(found.train.classes)]), sum(found.val.manifest.class_counts)
        if not known:
            raise _no_labels("--val", request.val_url, "class that --images has")
        if not self._data:
            if known < labelled:
                few = counted(labelled - known, "image")
                self._reporter.say(f"note: --val has {few} of classes that --images has not, which count as wrong on every side")
            self._tell_broken("--images", f"{self._store.location}/{place}/train")
            self._tell_broken("--val", f"{self._store.location}/{place}/val")
        self._data[place] = found
        return found

    def _tell_broken(self, option: str, dataset: str) -> None:
        store = Store(dataset, storage_options=self._store.storage_options)
        if broken := sum(1 for _ in quarantined_inputs(store)):
            lack = f"{option}: {counted(broken, 'input')} without tokens, left out on every side"
            self._reporter.say(f"note: {lack}; `tokenshards quarantine {display_url(dataset)}` says why")

    def _kept(self, place: str, name: str, data: SideData, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what was kept under this name for this data, or make and keep it."""
        path = f"{place}/{name}-{sha256_hex(f'{data.digest} {self._request.stored_images}'.encode())[:12]}.json"
        if self._store.info(path) is None:
            self._store.write(path, json.dumps(make(), sort_keys=True).encode())
        found: dict[str, Any] = json.loads(self._store.read(path))
        return found

    def _baselines(self, sides: Sequence[Side]) -> list[Side]:
        """Return JPEG and WebP at the bytes of each tokenizer, and pixels, in the size of the largest tokenizer."""
        request = self._request
        if not request.against:
            return []
        size = min(MOST_PIXEL_SIDE, max(side.size for side in sides))
        preprocess = Preprocess(size=size, resize="crop", filter="bicubic", decode_mode="full", exif_orientation=True, decoder=DECODER)
        pixels = self._pixel_side(PIXELS, PixelValues(preprocess))
        found, data = [], self._data[pixels.place]
        for budget in _grouped([side.stored_bytes for side in sides if side.stored_bytes is not None]):
            for format in request.against:
                if format != PIXELS:
                    found.append(self._file_side(format, budget, preprocess, data))
        return found + ([pixels] if PIXELS in request.against else [])

    def _file_side(self, format: str, budget: float, preprocess: Preprocess, pixels: SideData) -> Side:
        name = f"{format}:{budget:.0f}" if budget >= 100 else f"{format}:{budget:.3g}"  # names of other budgets differ
        place = self._pixel_place(PixelValues(preprocess))

        def choose() -> dict[str, Any]:
            self._reporter.say(f"{name}: choosing resolution and quality …")
            chosen_on = pixels.train[: min(CHOSEN_ON, len(pixels.train))].ids_BLQ  # a plan has shuffled them
            found = best_file(format, chosen_on.reshape(len(chosen_on), preprocess.size, preprocess.size, 3), budget)
            return {"file": None} if found is None else {"file": found[0].to_json(), "bytes": file_bytes(found[0], pixels.val)}

        choice = self._kept(place, f"{format}-{budget}", pixels, choose)
        if choice["file"] is None:
            return Side(name=name, kind=format, place="", budget=budget, absent=f"no resolution gets files down to {budget:.3g} bytes")
        side = self._pixel_side(name, PixelValues(preprocess, SmallFile.from_json(choice["file"])))
        return replace(side, kind=format, budget=budget, stored_bytes=choice["bytes"])

    def _pixel_side(self, name: str, tokenizer: PixelValues) -> Side:
        place = self._pixel_place(tokenizer)
        folder = self._tokenizer_folder(place)
        if folder.info("tokenizer.json") is None:
            save_tokenizer(tokenizer, folder, "", {})
        data = self._tokenized(name, place)
        facts: dict[str, Any] = {"file": None if tokenizer.file is None else tokenizer.file.to_json()}
        if tokenizer.file is not None:
            facts |= self._kept(place, "facts", data, lambda: self._fidelity(place))
        return Side(name=name, kind=PIXELS, place=place, data=data.digest, size=tokenizer.spec.preprocess.size, facts=facts)

    def _pixel_place(self, tokenizer: PixelValues) -> str:
        return f"sides/{tokenizer.spec.fingerprint[:12]}-{self._images[:12]}"

    def _finished(self, sides: Sequence[Side]) -> Comparison:
        request, say = self._request, self._reporter.say
        present = [side for side in sides if not side.absent]
        for side in sides:
            if side.absent:
                say(f"{side.name}: left out: {side.absent}")
        say("linear probes …")
        probes = {side.place: self._probe(side) for side in present}
        _refuse_other_images(present, probes)
        found = Comparison.of(request, sides, probes, self._results(self._runs(present)))
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

    def _results(self, runs: Sequence[Run]) -> dict[Run, dict[str, Any]]:
        request, say, store = self._request, self._reporter.say, self._store
        results = {run: json.loads(store.read(run.path)) for run in runs if store.info(run.path) is not None}
        waiting = [run for run in runs if run not in results]
        if results:
            say(f"{len(results):,} of {counted(len(runs), 'training')} kept from before")
        if not waiting:
            return results
        length = "a minute" if request.minutes == 1 else f"{request.minutes:g} minutes"
        say(f"{counted(len(waiting), 'training')} of {length} each, {request.device} …")
        by_key = {(run.side, run.seed): run for run in runs}
        self._reporter.begin(len(runs), len(results), "trainings")

        def done(result: dict[str, Any]) -> None:
            results[by_key[result["side"], result["seed"]]] = result
            self._reporter.count(len(results))

        try:
            self._train(store.location, store.storage_options, waiting, done)
        finally:
            self._reporter.end()
        return results


def _no_labels(option: str, url: str, what: str) -> ConfigError:
    return ConfigError(
        f"{option} {display_url(url)}: no image has a {what}, so accuracy cannot be compared; expected labels, such as class folders. "
        "Name them with --label or --label-from; `evaluate-tokenizer` needs none"
    )


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
