"""The same images as tokens of our own tokenizer, at a given number of bytes an image. The accuracy benches share this module.

`tokens` take one byte per id (256 codes), the same for every image, uncompressed and without the tokenizer. `compact` are stored with the
codec `compact`: what the streams of held-out images take in a shard on average, with tokenizer and model divided over 100,000 images. The
model is fitted to the copies of the training images that the tokenizer is fitted to, as it would be to a sample of 100,000.

Shapes: N images.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from byte_budgets import SIDE, psnr, resized, split_names
from storage_limit import DATASET, shard_of

from tokenshards.pipeline.config import PlanConfig, RunConfig
from tokenshards.pipeline.conversion.codec_model import fit_codec
from tokenshards.pipeline.conversion.request import TokenizeRequest
from tokenshards.pipeline.conversion.tokenize import Conversion
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.records import TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards import Preprocess, open_dataset
from tokenshards.pipeline.shards.compact.model_file import model_bytes
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import fit_patch_kmeans
from tokenshards.stem_adaptors.comparison.measures import table_bytes


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """A tokenizer for a size: (side / patch)^2 sites with `levels` ids."""

    side: int
    patch: int
    levels: int
    codes: int = 256
    beam: int = 8


TOKENS = {
    64: TokenChoice(side=24, patch=6, levels=4),
    128: TokenChoice(side=32, patch=8, levels=8),
    256: TokenChoice(side=48, patch=6, levels=4),
    512: TokenChoice(side=64, patch=8, levels=8),
}
COMPACT = {
    64: TokenChoice(side=24, patch=4, levels=2, codes=320),
    128: TokenChoice(side=36, patch=4, levels=2, codes=352),
}
"""Settings of the highest PSNR among those that fit the size, on a fifth of the training images; fitted to the other four fifths."""
CHOICES = {"tokens": TOKENS, "compact": COMPACT}
FIT_COPIES, FIT_PATCHES = 4, 200_000
"""Shifted and mirrored copies of each training image that a tokenizer is fitted to, so that no code belongs to a single image."""


def shifted_copies(pixels_NHWC: np.ndarray, side: int, patch: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each image as it is and shifted by up to a patch, every second copy mirrored, at the tokenizer's resolution."""
    rng, reach = np.random.default_rng(0), -(-patch * SIDE // side)
    for index, pixels_HWC in enumerate(pixels_NHWC):
        wide = np.pad(pixels_HWC, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
        for copy in range(FIT_COPIES):
            top, left = rng.integers(0, 2 * reach + 1, 2) if copy else (reach, reach)
            shifted = wide[top : top + SIDE, left : left + SIDE]
            yield f"{index}.{copy}", resized(np.ascontiguousarray(shifted[:, ::-1] if copy % 2 else shifted), side)


class _Quiet:
    """A reporter that says nothing."""

    def say(self, message: str) -> None: ...
    def begin(self, planned: int | None, done: int) -> None: ...
    def advance(self, progress: object) -> None: ...
    def end(self) -> None: ...


def prepare_tokens(work: Path, kind: str, size: int, *, fit_patches: int = FIT_PATCHES) -> dict[str, Any]:
    """Fit a tokenizer to the training images and write `KIND_SIZE/train` and `/held_out` as datasets, as `tokenize` would."""
    root, choice = work / f"{kind}_{size}", CHOICES[kind][size]
    shutil.rmtree(root, ignore_errors=True)
    originals = np.load(work / "pixels.npz")
    preprocess = Preprocess(size=choice.side, resize="crop", filter="bicubic", decode_mode="full", exif_orientation=True, decoder=DECODER)
    fit = FitConfig(
        size=choice.side, patch=choice.patch, levels=choice.levels, codes=choice.codes, beam=choice.beam, max_patches=fit_patches
    )
    tokenizer, statistics = fit_patch_kmeans(shifted_copies(originals["train"], choice.side, choice.patch), fit, choice.side, preprocess)
    quality, tokens = written(work, root, tokenizer, statistics, codec="compact" if kind == "compact" else "default")
    found: dict[str, Any] = {**asdict(choice), "vocabulary": list(tokenizer.spec.vocabulary), **quality}
    if kind == "compact":
        copies_NHWC = np.stack([pixels for _, pixels in shifted_copies(originals["train"], choice.side, choice.patch)])
        fit_to = concatenate_tokens([tokenizer.encode(copies_NHWC[start : start + 256]) for start in range(0, len(copies_NHWC), 256)])
        return {**found, **stored_bytes(tokenizer, fit_to, tokens)}
    layout = tokenizer.spec.layout
    return {**found, "bytes": float(layout.sites * layout.ids_per_site)}


def written(work: Path, root: Path, tokenizer: Tokenizer, statistics: dict[str, Any], *, codec: str) -> tuple[dict[str, float], TokenBatch]:
    """Write both parts below `root` as datasets, as `tokenize` would; return their PSNR, and the tokens of the held-out images."""
    originals, files, found = np.load(work / "pixels.npz"), split_names(work), {}
    save_tokenizer(tokenizer, Store(str(root / "tokenizer")), "", statistics)
    for part, name in (("train", "psnr_db_of_train"), ("held_out", "psnr_db")):
        request = TokenizeRequest(
            source_url=str(work / "images" / part),
            out_url=str(root / part),
            tokenizer_url=str(root / "tokenizer"),
            plan=PlanConfig(codec=codec),
            run=RunConfig(workers=1, max_bad=0.0),
        )
        Conversion(request, _Quiet()).run()
        dataset, place = open_dataset(str(root / part)), {file: row for row, file in enumerate(files[part])}
        tokens, names = [], []
        for batch in dataset.batches(256):
            tokens.append(batch.tokens)
            names += batch.sample_ids
        decoded = tokenizer.decode(concatenate_tokens(tokens))
        values = [psnr(originals[part][place[file]], pixels) for file, pixels in zip(names, decoded, strict=True)]
        found[name] = round(float(np.mean(values)), 3)
    return found, concatenate_tokens(tokens)


def stored_bytes(tokenizer: Tokenizer, fit_to: TokenBatch, measured: TokenBatch) -> dict[str, float]:
    """Return the bytes of an image with the codec `compact`, and their parts. Of the tokenizer, only published networks do not count."""
    codec = fit_codec(fit_to, tokenizer, DATASET)
    parts = {
        "token_bytes": shard_of(measured, tokenizer.spec, codec).token_bytes / len(measured),
        "codebook_bytes": table_bytes(tokenizer) / DATASET,
        "model_bytes": len(model_bytes(codec.model)) / DATASET,
    }
    return {**{name: round(value, 2) for name, value in parts.items()}, "bytes": round(sum(parts.values()), 2)}
