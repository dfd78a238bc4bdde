"""The first half of `demo`: the whole job on real images that need no download, with previews for people."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tokenshards.pipeline.commands.demo_folder import clear_demo_folder
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.conversion.request import TokenizeRequest
from tokenshards.pipeline.conversion.tokenize import Conversion
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.reports.previews import preview_dataset
from tokenshards.pipeline.reports.storage_table import dataset_report
from tokenshards.pipeline.reports.terminal import TerminalReporter, print_table
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.words import counted

__all__ = ["run_demo", "write_digits", "write_photo_tiles"]

TILE = 128
STRIDE = 64
HELD_OUT = 5
"""One digit in five is held out."""


def run_demo(folder: str) -> None:
    """Write images, tokenize them, verify, and draw previews below `folder`.

    Raises ConfigError if scikit-learn is missing, or if `folder` has content and is not the demo's own.
    """
    started = time.monotonic()
    root = Path(folder)
    clear_demo_folder(root, "images", "digits_train", "digits_val", "photos")
    print("1. real images: scikit-learn's handwritten digits, and tiles of its two photographs")
    digits = write_digits(root / "images" / "digits")
    tiles = write_photo_tiles(root / "images" / "photos")
    print(f"   {digits} digits in {root}/images/digits/{{train,val}}/<class>/, {tiles} tiles in {root}/images/photos/\n")
    _tokenize(root, "digits/train", "digits_train", FitConfig(size=32, levels=1), None)
    _tokenize(root, "digits/val", "digits_val", FitConfig(), "digits_train")
    _tokenize(root, "photos", "photos", FitConfig(size=TILE), None)
    print("\nsizes, for the tiles of photographs")
    report = dataset_report(Store(str(root / "photos")))
    print_table(report.rows())
    print("\nshards open in three lines of Python:")
    dataset = open_dataset(str(root / "digits_train"))
    batch = next(dataset.batches(256))
    print(f"   {dataset}\n   ids {batch.ids_BLQ.shape} {batch.ids_BLQ.dtype}, classes {dataset.classes}")
    for name, source in (("photos", "photos"), ("digits_val", "digits/val")):
        shown = preview_dataset(
            str(root / name),
            str(root / f"{name}.png"),
            count=12,
            sample_ids=(),
            label=None,
            source_url=str(root / "images" / source),
            options={},
        )
        print(f"   {shown.text()}")
    print(f"   the first half took {time.monotonic() - started:.1f} s")


def write_digits(folder: Path) -> int:
    """Write scikit-learn's 1,797 digits as 32 × 32 PNGs under train/<class>/ and val/<class>/; return their number."""
    with optional_import("the images of the demo need scikit-learn", extra="demo"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        image = Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        place = folder / ("val" if index % HELD_OUT == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index:04d}.png")
    return len(digits.target)


def write_photo_tiles(folder: Path) -> int:
    """Write overlapping 128 px tiles of scikit-learn's two photographs as JPEG; return their number."""
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    samples = load_sample_images()
    count = 0
    for name, photo in zip(samples.filenames, samples.images, strict=True):
        for top in range(0, photo.shape[0] - TILE + 1, STRIDE):
            for left in range(0, photo.shape[1] - TILE + 1, STRIDE):
                tile = Image.fromarray(photo[top : top + TILE, left : left + TILE])
                tile.save(folder / f"{Path(name).stem}_{top:03d}_{left:03d}.jpg", quality=95)
                count += 1
    return count


def _tokenize(root: Path, source: str, out: str, fit: FitConfig, tokenizer: str | None) -> None:
    print(f"tokenize {root}/images/{source} {root}/{out}" + (f" --tokenizer {root}/{tokenizer}" if tokenizer else ""))
    sys.stdout.flush()
    request = TokenizeRequest(
        source_url=str(root / "images" / source),
        out_url=str(root / out),
        tokenizer_url=str(root / tokenizer) if tokenizer else None,
        fit=fit,
        run=RunConfig(workers=os.cpu_count() or 1),
    )
    outcome = Conversion(request, TerminalReporter()).run()
    found = verify_dataset(Store(str(root / out)))
    totals = outcome.manifest.totals
    print(
        f"   {counted(totals['images_committed'], 'image')}, {totals['bytes_shards']:,} bytes of shards, "
        f"{outcome.images / outcome.seconds:,.0f} images/s; verify: {'ok' if found.ok else found.problems}\n"
    )
