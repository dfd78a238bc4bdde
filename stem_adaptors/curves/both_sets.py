"""The dataset to learn from and the dataset to measure on: opened, checked, and counted. The images that they were made from, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from tokenshards.pipeline.planning.nesting import refuse_nested_stores
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store, display_url
from tokenshards.pipeline.tokenizers.pixels.small_file import SmallFile
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.compare_config import MOST_PIXEL_SIDE, ImageSources
from tokenshards.stem_adaptors.comparison.image_sides import ImageSides, OpenRunner, pixels_of_size
from tokenshards.stem_adaptors.comparison.side_data import SideData, digest_of
from tokenshards.stem_adaptors.curves.curve_config import JPEG, TOKENS, Stock
from tokenshards.stem_adaptors.curves.measured_images import labelled_ids, shared_places
from tokenshards.stem_adaptors.data.class_names import class_map
from tokenshards.stem_adaptors.data.labels import require_labels
from tokenshards.stem_adaptors.data.same_tokenizer import require_same_tokenizer
from tokenshards.stem_adaptors.data.selection import Ints
from tokenshards.stem_adaptors.training.validation import seen_in_training

__all__ = ["BothSets", "WholePixels", "jpegs_missing", "labelled_images", "listed_pixels", "shared_with_note"]

TOKENIZER = "tokenizer"
"""Folder of a dataset."""


@dataclass(frozen=True, kw_only=True)
class BothSets:
    """DATA and VAL."""

    data: TokenDataset
    val: TokenDataset

    @classmethod
    def opened(cls, data_url: str, val_url: str, out: Store, reporter: TerminalReporter, unknown: str = "count as wrong") -> Self:
        """Open both. Tell where they are one dataset, how many images of VAL have a class that DATA lacks, and what becomes of these
        (`unknown`).

        Raises ConfigError where a place lies within another or there are no labels, OtherTokenizerError where VAL has another tokenizer.
        """
        data, val = (open_dataset(url, storage_options=out.storage_options) for url in (data_url, val_url))
        for dataset in (data, val):
            refuse_nested_stores(dataset.store, out)
        require_same_tokenizer(val, data.spec, f"the tokens of {display_url(data_url)}")
        require_labels(data, "`pretrain` needs none")
        require_labels(val, "Accuracy needs labels on both sides")
        known_C = class_map(val.classes, data.classes, f"--val {val.store.url}", missing_is_error=False)
        lost = sum(count for count, place in zip(val.manifest.class_counts, known_C.tolist(), strict=False) if place < 0)
        if lost:
            reporter.say(f"note: --val has {counted(lost, 'image')} of classes that DATA has not, which {unknown}")
        if (note := seen_in_training(val, data)) is not None:
            reporter.say(note)
        return cls(data=data, val=val)

    @property
    def digest(self) -> str:
        """Of both manifests."""
        return digest_of(self.data, self.val)

    @property
    def stock(self) -> Stock:
        """The images of DATA, and the bytes of their ids."""
        data = self.data
        return Stock(bytes=int(data.manifest.totals["token_bytes"]), images=len(data) // data.views, labelled=labelled_images(data))

    @property
    def tokenizer_bytes(self) -> int:
        """Of codebook, weights and model of the codec."""
        return sum(max(0, info.size) for info in self.data.store.list(TOKENIZER))


def labelled_images(dataset: TokenDataset) -> int:
    """Return how many images have a label."""
    return sum(dataset.manifest.class_counts) // dataset.views


@dataclass(frozen=True, kw_only=True)
class SmallFiles:
    """The images of DATA and VAL as pixels, from small files."""

    file: SmallFile
    bytes_per_image: float
    place: str
    data: SideData

    @property
    def detail(self) -> str:
        """The settings of the file, in words."""
        return f"{self.file.side} px, quality {self.file.quality}"


@dataclass(frozen=True, kw_only=True)
class WholePixels:
    """The images of DATA and VAL as pixels, from the original files."""

    sides: ImageSides
    size: int
    """Pixels of a side, those of the tokenizer of DATA."""
    place: str
    """Folder of both datasets in the store."""
    data: SideData

    @property
    def files(self) -> Stock:
        """The original files."""
        train = self.data.train
        return Stock(bytes=int(train.manifest.totals["bytes_in"]), images=len(train), labelled=labelled_images(train))

    def jpegs_of(self, budget: float) -> SmallFiles | None:
        """Return the images as the best JPEGs whose mean bytes fit the budget; None where no resolution gets files so small.

        `jpegs_missing` says the latter in words.
        """
        name, train = f"{JPEG} of {budget:,.1f} bytes", self.data.train
        found = self.sides.small_file(name, JPEG, budget, self.data, train, f"{self.data.digest} measured on train")
        if found is None:
            return None
        place, data = self.sides.pixels(name, pixels_of_size(self.size, found[0]))
        return SmallFiles(file=found[0], bytes_per_image=found[1], place=place, data=data)


def jpegs_missing(budget: float) -> str:
    """Say why there are no JPEGs of so few bytes."""
    return f"no resolution gets files down to {budget:.3g} bytes"


def listed_pixels(sources: ImageSources, sets: BothSets, out: Store, open_runner: OpenRunner, reporter: TerminalReporter) -> WholePixels:
    """List both sources, tell what was understood of them and how they differ from DATA, and make their pixels.

    Raises DoubtError where the images are in grave doubt, and the errors of converting.
    """
    sides, size = ImageSides(replace(sources, out_url=out.location), out, open_runner, reporter), sets.data.spec.preprocess.size
    sides.list_val()
    with sides.listed_images(0):
        pass
    place, data = sides.pixels("pixels", pixels_of_size(size))
    found = WholePixels(sides=sides, size=size, place=place, data=data)
    if found.files.labelled != sets.stock.labelled:
        here, there = f"--images has {found.files.labelled:,} labelled images", f"DATA has {sets.stock.labelled:,}"
        reporter.say(f"note: {here}, {there}; expected the same images on every side")
    if size > MOST_PIXEL_SIDE:
        reporter.say(f"note: images have {MOST_PIXEL_SIDE} px a side, those of DATA's tokenizer {size}")
    return found


def shared_with_note(measured: Mapping[str, TokenDataset], reporter: TerminalReporter) -> dict[str, Ints]:
    """Return the result of `shared_places`, and tell how many images are left out. `measured` has the side TOKENS."""
    ids = {place: labelled_ids(dataset) for place, dataset in measured.items()}
    places = shared_places(ids)
    count, most = len(places[TOKENS]), max(map(len, ids.values()))
    if count < most:
        reporter.say(f"note: {count:,} of {most:,} images are measured, those that VAL and --val-images both have")
    return places
