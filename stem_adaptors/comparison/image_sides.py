"""Labelled images as datasets of a comparison: listed once, tokenized on each side, and as pixels, whole or out of small files.

Everything lies in the comparison's store under names that hold a digest of what it depends on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.config import RunConfig, SourceConfig
from tokenshards.pipeline.conversion.understand import understand
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.planning.nesting import refuse_nesting
from tokenshards.pipeline.planning.planner import Listing
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.reports.quarantine import quarantined_inputs
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.runners.base import Runner
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.sources.pixel_depth import settle_sixteen_bit
from tokenshards.pipeline.storage.store import Store, display_url
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.pixels.pixel_values import PixelValues
from tokenshards.pipeline.tokenizers.pixels.small_file import SmallFile
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.compare_config import MOST_PIXEL_SIDE, ImageSources
from tokenshards.stem_adaptors.comparison.file_budget import best_file
from tokenshards.stem_adaptors.comparison.measures import file_bytes
from tokenshards.stem_adaptors.comparison.side_data import Counted, SideData, tokenized
from tokenshards.stem_adaptors.data.labels import has_labels

__all__ = ["ImageSides", "OpenRunner", "pixels_of_size"]

OpenRunner = Callable[[RunConfig], Runner]

CHOSEN_ON = 100
"""Training images on which the settings of a file are chosen."""


def pixels_of_size(size: int, file: SmallFile | None = None) -> PixelValues:
    """Return the tokenizer of pixels for images of this side, at most MOST_PIXEL_SIDE."""
    size = min(MOST_PIXEL_SIDE, size)
    return PixelValues(
        Preprocess(size=size, resize="crop", filter="bicubic", decode_mode="full", exif_orientation=True, decoder=DECODER), file
    )


class ImageSides:
    """Makes the datasets of sides. `list_val` and `listed_images` come first: places are named by what they list."""

    def __init__(self, sources: ImageSources, store: Store, open_runner: OpenRunner, reporter: TerminalReporter) -> None:
        self.sources, self.store, self._open_runner, self._reporter = sources, store, open_runner, reporter
        self.digest = self._val_digest = ""
        self._told = False

    def list_val(self) -> None:
        """List the images to measure on, and tell what was understood of them."""
        with self._listed(self.sources.val_url, self.sources.val, self.sources.val_option, 0) as (_, _, self._val_digest):
            pass

    @contextmanager
    def listed_images(self, sample: int) -> Iterator[tuple[ImageSource, list[PlanRow]]]:
        """List the images to learn from, and give the source and a sample of its rows."""
        with self._listed(self.sources.images_url, self.sources.images, "--images", sample) as (source, rows, digest):
            if digest == self._val_digest:
                same = f"--images and {self.sources.val_option} are the same"
                self._reporter.say(f"note: {same}, so that figures tell how well images are remembered")
            self.digest = sha256_hex(f"{digest} {self._val_digest}".encode())
            yield source, rows

    @contextmanager
    def _listed(self, url: str, config: SourceConfig, option: str, sample: int) -> Iterator[tuple[ImageSource, list[PlanRow], str]]:
        """List a source, tell what was understood of it, and give the source, its sample and the digest of all its rows."""
        refuse_nesting(url, config, self.store)
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

    def tokenized(self, name: str, place: str) -> SideData:
        """Return both datasets of a side whose tokenizer lies in `place`. Raises ConfigError where no image has a label."""
        sources = self.sources
        found = tokenized(sources, self.store, place, name, lambda: self._open_runner(sources.run), self._reporter)
        if not has_labels(found.train):
            raise _no_labels("--images", sources.images_url, "label")
        known, labelled = sum(found.val.manifest.class_counts[: len(found.train.classes)]), sum(found.val.manifest.class_counts)
        if not known:
            raise _no_labels(sources.val_option, sources.val_url, "class that --images has")
        if not self._told:
            self._told = True
            if known < labelled:
                few = counted(labelled - known, "image")
                lack = f"{sources.val_option} has {few} of classes that --images has not"
                self._reporter.say(f"note: {lack}, which count as wrong on every side")
            self._tell_broken("--images", f"{self.store.location}/{place}/train")
            self._tell_broken(sources.val_option, f"{self.store.location}/{place}/val")
        return found

    def _tell_broken(self, option: str, dataset: str) -> None:
        store = Store(dataset, storage_options=self.store.storage_options)
        if broken := sum(1 for _ in quarantined_inputs(store)):
            lack = f"{option}: {counted(broken, 'input')} without tokens, left out on every side"
            self._reporter.say(f"note: {lack}; `tokenshards quarantine {display_url(dataset)}` says why")

    def pixels(self, name: str, tokenizer: PixelValues) -> tuple[str, SideData]:
        """Return the place and the datasets of a side of pixels."""
        place = self.place_of(tokenizer)
        folder = self.tokenizer_folder(place)
        if folder.info("tokenizer.json") is None:
            save_tokenizer(tokenizer, folder, "", {})
        return place, self.tokenized(name, place)

    def place_of(self, tokenizer: PixelValues) -> str:
        """Return the folder of a side of pixels in the store."""
        return f"sides/{tokenizer.spec.fingerprint[:12]}-{self.digest[:12]}"

    def tokenizer_folder(self, place: str) -> Store:
        """Return the folder of the tokenizer of a side."""
        return Store(f"{self.store.location}/{place}/tokenizer", storage_options=self.store.storage_options)

    def kept(self, place: str, name: str, depends: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what was kept under this name for what it depends on, or make and keep it."""
        path = f"{place}/{name}-{sha256_hex(depends.encode())[:12]}.json"
        if self.store.info(path) is None:
            self.store.write(path, json.dumps(make(), sort_keys=True).encode())
        found: dict[str, Any] = json.loads(self.store.read(path))
        return found

    def small_file(
        self, name: str, format: str, budget: float, pixels: SideData, measured: TokenDataset, depends: str
    ) -> tuple[SmallFile, float] | None:
        """Return the best file whose mean bytes fit the budget, and its mean bytes for `measured`; None where no file is so small."""
        size = pixels.train.spec.preprocess.size

        def choose() -> dict[str, Any]:
            self._reporter.say(f"{name}: choosing resolution and quality …")
            chosen_on = pixels.train[: min(CHOSEN_ON, len(pixels.train))].ids_BLQ  # a plan has shuffled them
            found = best_file(format, chosen_on.reshape(len(chosen_on), size, size, 3), budget)
            return {"file": None} if found is None else {"file": found[0].to_json(), "bytes": file_bytes(found[0], measured)}

        choice = self.kept(self.place_of(pixels_of_size(size)), f"{format}-{budget}", depends, choose)
        return None if choice["file"] is None else (SmallFile.from_json(choice["file"]), choice["bytes"])


def _no_labels(option: str, url: str, what: str) -> ConfigError:
    return ConfigError(
        f"{option} {display_url(url)}: no image has a {what}, so accuracy cannot be compared; expected labels, such as class folders. "
        "Name them with --label or --label-from; `evaluate-tokenizer` needs none"
    )
