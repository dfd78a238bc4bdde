"""The same images at a given number of bytes as JPEG and as WebP. The accuracy benches share this module; tokens are in `token_budgets`.

JPEG counts its scan alone (the bytes between the SOS header and the end marker), because all files share Pillow's standard quantisation
and Huffman tables. WebP counts whole files. `jpeg` and `webp` use one resolution, chroma sampling and quality for a size: those of the
highest PSNR (after bicubic enlargement) on a sample of training images whose mean bytes fit the size. `jpeg-own` and `webp-own` show what
an encoder with rate control could do: one resolution, and a quality for every single image, chosen for the least total squared error while
the mean bytes fit the size. (Maximising the mean PSNR would spend the bytes on a few images that become lossless, and leave the others at
quality 1.)

Shapes: N images, Q qualities.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenshards.pipeline.tokenizers.pixels.small_file import SmallFile, resized

SIDE = 64
SIZES = (32, 64, 128, 256, 512)
SAMPLE = 200
"""Training images on which resolution, chroma sampling and the common quality are chosen."""
MOST_BYTES = 8
"""A single image may take this many times the budget. A common quality that needs more is left out."""
SIDES = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64)
QUALITIES = {
    "jpeg": (*range(1, 20), *range(20, 50, 2), *range(50, 98, 3)),
    "webp": (*range(20), *range(20, 50, 2), *range(50, 98, 3)),
}
SUBSAMPLINGS: dict[str, tuple[str, ...]] = {"jpeg": ("4:4:4", "4:2:0"), "webp": ("4:2:0",)}
"""Lossy WebP has 4:2:0 alone."""


@dataclass(frozen=True)
class Split:
    """Files of the training images and of the held-out ones, each in a fixed order."""

    train: list[Path]
    held_out: list[Path]

    @staticmethod
    def label(path: Path) -> str:
        return path.parent.name


def split_files(data: Path, held_out: int) -> Split:
    """Hold out all of val/ and an equal share of each class of train/, `held_out` images in all; at most half of a class."""
    train: list[Path] = []
    held = sorted(path for path in (data / "val").glob("*/*") if path.is_file())
    classes = sorted(path for path in (data / "train").iterdir() if path.is_dir())
    from_train = -(-max(0, held_out - len(held)) // len(classes))
    for folder in classes:
        files = sorted(folder.iterdir(), key=lambda path: hashlib.sha256(path.name.encode()).hexdigest())
        kept = len(files) - min(from_train, len(files) // 2)
        train += files[:kept]
        held += files[kept:]
    return Split(sorted(train), sorted(held))


def generate_images(root: Path, *, classes: int = 10, train: int = 400, val: int = 50) -> None:
    """Write images of 64 px: a coarse coloured pattern for each class, shifted, with varying brightness, under noise."""
    rng = np.random.default_rng(0)
    for number in range(classes):
        pattern = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
        for part, count in (("train", train), ("val", val)):
            folder = root / part / f"class_{number}"
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                top, left = rng.integers(0, 96 - SIDE, 2)
                pixels = np.asarray(pattern, np.float32)[top : top + SIDE, left : left + SIDE] * rng.uniform(0.4, 1.1)
                pixels = pixels + rng.normal(0, 60, 3) + rng.normal(0, 45, (SIDE, SIDE, 1))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{part}_{number}_{index:04d}.png")


def load_pixels(files: list[Path]) -> np.ndarray:
    """Return uint8 [N, 64, 64, 3]."""
    images = (Image.open(path).convert("RGB") for path in files)
    return np.stack([np.asarray(p if p.size == (SIDE, SIDE) else p.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for p in images])


def psnr(original_HWC: np.ndarray, other_HWC: np.ndarray) -> float:
    """Return dB, after enlarging the other image to the original's size."""
    error = np.square(original_HWC.astype(np.float32) - resized(other_HWC, len(original_HWC))).mean()
    return float(10 * np.log10(255**2 / max(float(error), 1e-2)))


def encoded(codec: str, pixels_HWC: np.ndarray, subsampling: str, quality: int) -> tuple[int, np.ndarray]:
    """Return the bytes that count, and the decoded pixels."""
    return SmallFile(format=codec, side=len(pixels_HWC), quality=quality, subsampling=subsampling).stored(pixels_HWC)


def rate_and_quality(codec: str, pixels_NHWC: np.ndarray, side: int, subsampling: str, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes and PSNR [N, Q] at every quality. Files above `most` bytes count as infinitely large."""
    qualities = QUALITIES[codec]
    sizes_NQ, psnr_NQ = np.full((len(pixels_NHWC), len(qualities)), np.inf), np.zeros((len(pixels_NHWC), len(qualities)))
    for row, original in enumerate(pixels_NHWC):
        small = resized(original, side)
        for column, quality in enumerate(qualities):
            size, decoded = encoded(codec, small, subsampling, quality)
            if size > most:
                break
            sizes_NQ[row, column], psnr_NQ[row, column] = size, psnr(original, decoded)
    return sizes_NQ, psnr_NQ


def best_qualities(sizes_NQ: np.ndarray, psnr_NQ: np.ndarray, budget: float) -> np.ndarray | None:
    """Return a quality index per image with the least squared error at a mean of at most `budget` bytes; None where no quality is small
    enough.

    Bisection finds the one price of a byte, equal for all images, at which the bytes just fit.
    """
    rows = np.arange(len(sizes_NQ))
    if not np.isfinite(sizes_NQ[:, 0]).all() or sizes_NQ[:, 0].mean() > budget:
        return None
    low, high, error_NQ = 0.0, 1e5, 255**2 / 10 ** (psnr_NQ / 10)
    finite_NQ = np.where(np.isfinite(sizes_NQ), sizes_NQ, 1e9)
    for _ in range(60):
        price = (low + high) / 2
        chosen_N = (error_NQ + price * finite_NQ).argmin(axis=1)
        low, high = (price, high) if finite_NQ[rows, chosen_N].mean() > budget else (low, price)
    return (error_NQ + high * finite_NQ).argmin(axis=1)


def common_quality(sizes_NQ: np.ndarray, psnr_NQ: np.ndarray, budget: float) -> np.ndarray | None:
    """Return one quality index for all images, of the highest mean PSNR at a mean of at most `budget` bytes; None where none fits."""
    fits_Q = sizes_NQ.mean(axis=0) <= budget  # images above the cap are infinitely large
    if not fits_Q.any():
        return None
    return np.full(len(sizes_NQ), np.where(fits_Q, psnr_NQ.mean(axis=0), -np.inf).argmax())


def choose_setting(kind: str, pixels_NHWC: np.ndarray, budget: int, sample: int) -> dict[str, Any] | None:
    """Return the setting of highest mean PSNR on a sample; None where no file is small enough."""
    codec, choose = kind.removesuffix("-own"), best_qualities if kind.endswith("-own") else common_quality
    step = max(1, len(pixels_NHWC) // sample)
    sample_NHWC, best = pixels_NHWC[::step][:sample], None
    for side in SIDES:
        for subsampling in SUBSAMPLINGS[codec]:
            sizes_NQ, psnr_NQ = rate_and_quality(codec, sample_NHWC, side, subsampling, MOST_BYTES * budget)
            chosen_N = choose(sizes_NQ, psnr_NQ, budget)
            if chosen_N is None:
                continue
            found = float(psnr_NQ[np.arange(len(chosen_N)), chosen_N].mean())
            if best is None or found > best["psnr_db_of_sample"]:
                best = {"side": side, "subsampling": subsampling, "psnr_db_of_sample": round(found, 3)}
                if choose is common_quality:
                    best["quality"] = QUALITIES[codec][int(chosen_N[0])]
    return best


def prepare_baseline(work: Path, kind: str, size: int, *, sample: int = SAMPLE) -> dict[str, Any]:
    """Write `KIND_SIZE.npz` with the decoded pixels of both parts, in the stored resolution; return the choices and their results."""
    originals, codec = np.load(work / "pixels.npz"), kind.removesuffix("-own")
    setting = choose_setting(kind, originals["train"], size, sample)
    if setting is None:
        return {"bytes": None, "reason": f"no resolution gets a {codec} file down to {size} bytes on average"}
    side, subsampling = setting["side"], setting["subsampling"]
    everything_NHWC = np.concatenate([originals["train"], originals["held_out"]])
    if "quality" in setting:
        qualities = np.full(len(everything_NHWC), setting["quality"])
    else:
        chosen_N = best_qualities(*rate_and_quality(codec, everything_NHWC, side, subsampling, MOST_BYTES * size), size)
        if chosen_N is None:
            return {"bytes": None, "reason": f"{side} px of {codec} fit {size} bytes in the sample, and not in all images"}
        qualities = np.array(QUALITIES[codec])[chosen_N]
        setting["quality_percentiles_5_50_95"] = np.percentile(qualities, [5, 50, 95]).round().astype(int).tolist()
    found = [encoded(codec, resized(p, side), subsampling, int(q)) for p, q in zip(everything_NHWC, qualities, strict=True)]
    decoded_NHWC, train = np.stack([pixels for _, pixels in found]), len(originals["train"])
    np.savez(work / f"{kind}_{size}.npz", train=decoded_NHWC[:train], held_out=decoded_NHWC[train:])
    quality = [psnr(original, decoded) for original, decoded in zip(originals["held_out"], decoded_NHWC[train:], strict=True)]
    return {**setting, "bytes": round(float(np.mean([size for size, _ in found])), 2), "psnr_db": round(float(np.mean(quality)), 3)}


def link_images(files: list[Path], folder: Path) -> None:
    """Put one part of the split into class folders of hard links (copies on another file system), where `tokenize` reads it."""
    for path in files:
        target = folder / Split.label(path) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            try:
                os.link(path, target)
            except OSError:
                shutil.copyfile(path, target)


def split_names(work: Path) -> dict[str, list[str]]:
    """Return CLASS/FILE of both parts in the order of `pixels.npz`."""
    return {part: (work / f"{part}.txt").read_text().splitlines() for part in ("train", "held_out")}


def prepare_images(work: Path, split: Split) -> None:
    """Write the input of every other side: `pixels.npz`, the names, and class folders of both parts."""
    work.mkdir(parents=True, exist_ok=True)
    for part, files in (("train", split.train), ("held_out", split.held_out)):
        link_images(files, work / "images" / part)
        (work / f"{part}.txt").write_text("".join(f"{Split.label(path)}/{path.name}\n" for path in files))
    np.savez(work / "pixels.npz", train=load_pixels(split.train), held_out=load_pixels(split.held_out))
