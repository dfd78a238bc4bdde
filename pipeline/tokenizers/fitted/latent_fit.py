"""Fits residual k-means to the latents of an encoder. The same images give the same tables, in any order.

Shapes: B images, L sites of an image, N rows of latents, Q levels, K codes of a level, C channels of the latent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.tokenizers.base import Images
from tokenshards.pipeline.tokenizers.code_usage import code_usage, rounded
from tokenshards.pipeline.tokenizers.config import LatentFitConfig
from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import LatentEncoder, LatentKMeans
from tokenshards.pipeline.tokenizers.kmeans.residual_tables import residual_tables
from tokenshards.pipeline.tokenizers.kmeans.row_sample import RowSample
from tokenshards.pipeline.tokenizers.networks.network import SLOTS
from tokenshards.pipeline.tokenizers.psnr import image_psnr_db

__all__ = ["fit_latent_kmeans"]

Floats = npt.NDArray[np.float32]

LATENTS_PER_CODE = 25
"""Fewest latents per code; with fewer the codes would memorise the sample."""
MIN_CODES = 16
SHOWN_IMAGES = 32
"""Images on which reconstruction is measured."""


def fit_latent_kmeans(
    images: Iterable[tuple[str, Images]], encoder: LatentEncoder, config: LatentFitConfig, preprocess: Preprocess
) -> tuple[LatentKMeans, dict[str, Any]]:
    """Fit a tokenizer to (content hash, uint8 pixels [size, size, 3]) pairs; return it with statistics in plain JSON types.

    Equal hashes count once, and the order of the images does not matter. Raises TokenizerError where there is no image.
    """
    sample, shown = RowSample(config.max_latents, config.seed), dict[str, Images]()
    for name, pixels_HWC, latents_LC in _latents(images, encoder, mirrored=config.mirrored):
        sample.add(name, latents_LC)
        shown[name] = pixels_HWC
        if len(shown) > SHOWN_IMAGES:
            del shown[max(shown)]
    drawn = sorted(sample.rows().items())
    if not drawn:
        raise TokenizerError("fit: there is no image to fit a tokenizer to; expected at least 1. Check that the source can be decoded")
    latents_NC = np.concatenate([rows_mC for _, rows_mC in drawn])
    codes = min(config.codes, max(MIN_CODES, len(latents_NC) // LATENTS_PER_CODE))
    rng = np.random.default_rng(config.seed)
    tables, used, rest_NC = residual_tables(latents_NC, codes, config.levels, iterations=config.iterations, rng=rng)
    tokenizer = LatentKMeans(encoder, tables, preprocess=preprocess)
    quality = _fidelity(encoder, tables, np.stack([shown[name] for name in sorted(shown)]), preprocess)
    summed_NC = latents_NC - rest_NC
    notes = []
    if codes < config.codes:
        notes.append(f"codes limited from {config.codes} to {codes}: one for each {LATENTS_PER_CODE} of {len(latents_NC)} latents")
    statistics = {
        "images": len(drawn),
        "latents": len(latents_NC),
        "fit": {"seed": config.seed, "iterations": config.iterations, "codes": config.codes, "max_latents": config.max_latents},
        "levels": [
            {**code_usage(np.bincount(ids_N, minlength=len(table))), **quality[q]}
            for q, (ids_N, table) in enumerate(zip(used, tables, strict=True))
        ],
        "embedding": {"mean": rounded(summed_NC.mean(axis=0)), "std": rounded(summed_NC.std(axis=0))},
        "notes": notes,
    }
    return tokenizer, statistics


def _latents(images: Iterable[tuple[str, Images]], encoder: LatentEncoder, *, mirrored: bool) -> Iterator[tuple[str, Images, Floats]]:
    """Yield name, pixels and latents [L, C] of each image and, where asked for, of its mirror image."""
    views = ((name + suffix, view) for name, pixels in images for suffix, view in _views(pixels, mirrored=mirrored))
    while some := list(islice(views, SLOTS)):
        latents_BLC = encoder.encode(np.stack([pixels for _, pixels in some])).cpu().numpy()
        yield from ((name, pixels, latents) for (name, pixels), latents in zip(some, latents_BLC, strict=True))


def _views(pixels_HWC: Images, *, mirrored: bool) -> Iterator[tuple[str, Images]]:
    yield "", pixels_HWC
    if mirrored:
        yield "~", pixels_HWC[:, ::-1]


def _fidelity(encoder: LatentEncoder, tables: list[Floats], images_BHWC: Images, preprocess: Preprocess) -> list[dict[str, float]]:
    """Return the mean PSNR for each number of levels used; an empty list where there is no decoder."""
    if not encoder.decodes:
        return [{} for _ in tables]
    found = []
    for count in range(1, len(tables) + 1):
        part = LatentKMeans(encoder, tables[:count], preprocess=preprocess)
        decoded = part.decode(part.encode(images_BHWC))
        found.append({"psnr_db": rounded([float(image_psnr_db(images_BHWC, decoded).mean())])[0]})
    return found
