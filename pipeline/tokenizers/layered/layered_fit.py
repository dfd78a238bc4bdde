"""Fits the tokenizer `layered-kmeans` to images without labels. Equal images, in any order, give equal tables with one BLAS thread.

Shapes: L sites, N rows, D values of a patch, W whitened values, K centroids or codes, A activations of a site,
P projected values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tokenshards.pipeline.canonical import keyed_hash64
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.tokenizers.base import Images
from tokenshards.pipeline.tokenizers.code_usage import code_usage, rounded
from tokenshards.pipeline.tokenizers.config import LayeredFitConfig
from tokenshards.pipeline.tokenizers.kmeans.lloyd import kmeans
from tokenshards.pipeline.tokenizers.kmeans.patches import images_to_patches
from tokenshards.pipeline.tokenizers.kmeans.residual_tables import residual_tables
from tokenshards.pipeline.tokenizers.kmeans.row_sample import RowSample
from tokenshards.pipeline.tokenizers.layered.agreement import Agreement, changed_copy
from tokenshards.pipeline.tokenizers.layered.features import (
    COLOURS,
    VIEWS,
    LayeredFeatures,
    PatchLayer,
    PatchRows,
)
from tokenshards.pipeline.tokenizers.layered.layered_kmeans import LayeredKMeans, residual_ids_of, summed_vectors
from tokenshards.pipeline.tokenizers.layered.neighbourhood_decoder import DecoderFit, halves
from tokenshards.pipeline.tokenizers.nearest_code import NearestCode
from tokenshards.pipeline.tokenizers.psnr import image_psnr_db

__all__ = ["fit_layered_kmeans"]

MOST_IMAGES, MOST_PIXEL_BYTES = 2000, 256 << 20
"""Images that are kept for all steps of a fit: those of the lowest keyed hashes."""
WHITENED, PROJECTED = 40, 64
CENTROIDS = (200, 200)
"""Of each layer."""
EPSILON, LEAST_VARIANCE = 0.01, 1e-6
"""Added to each eigenvalue before whitening: a share of their mean, and at least so much, so that flat images stay within float16."""
ROWS_PER_CODE = 25
"""Fewest rows per code; with fewer the codes would memorise the sample."""
MIN_CODES = 16
TOGETHER, TOGETHER_SITES = 64, 4096
"""Images that are encoded at once, and sites whose activations are kept at once: 13 MB."""


def fit_layered_kmeans(
    images: Iterable[tuple[str, Images]], config: LayeredFitConfig, size: int, preprocess: Preprocess
) -> tuple[LayeredKMeans, dict[str, Any]]:
    """Fit a tokenizer to (content hash, uint8 pixels [size, size, 3]) pairs; return it with statistics in plain JSON types.

    Equal hashes count once, and the order of the images does not matter. Raises TokenizerError where there is no image.
    """
    kept, seen = _kept(images, size, config.seed)
    rng = np.random.default_rng(config.seed)
    layers = tuple(_layer(kept, number, config, rng) for number in range(len(VIEWS)))
    features, sites = _second_layer(layers, kept, config)
    rows_NP = np.concatenate([rows for _, rows in sorted(sites.rows().items())])
    codes = min(config.codes, max(MIN_CODES, len(rows_NP) // ROWS_PER_CODE))
    tables, used, rest_NP = residual_tables(rows_NP, codes, config.levels, iterations=config.iterations, rng=rng)
    summed_NP = rows_NP - rest_NP
    search = [NearestCode(table) for table in tables]
    names, grid = sorted(kept), (size // config.site, size // config.site)
    way_back = DecoderFit(rows_NP.shape[1], config.site**2 * 3)
    for images_BHWC in _batches(kept, names):
        vectors_BLP = summed_vectors(residual_ids_of(features(images_BHWC), search), tables)
        way_back.add(vectors_BLP, images_to_patches(images_BHWC, config.site).reshape(*vectors_BLP.shape[:2], -1), grid)
    tokenizer = LayeredKMeans(features, tables, way_back.decoder(), preprocess=preprocess)
    shown = np.stack([kept[name] for name in names[:TOGETHER]])
    levels = [dict(code_usage(np.bincount(ids_N, minlength=len(table)))) for ids_N, table in zip(used, tables, strict=True)]
    levels[-1]["psnr_db"] = rounded([float(image_psnr_db(shown, tokenizer.decode(tokenizer.encode(shown))).mean())])[0]
    notes = []
    if codes < config.codes:
        notes.append(f"codes limited from {config.codes} to {codes}: one for each {ROWS_PER_CODE} of {len(rows_NP)} sites")
    if len(kept) < seen:
        notes.append(f"the fit worked on {len(kept):,} of {seen:,} images, which is as many as its memory holds")
    statistics = {
        "images": seen,
        "sites": len(rows_NP),
        "fit": {"seed": config.seed, "iterations": config.iterations, "codes": config.codes, "images_kept": len(kept)},
        "levels": levels,
        "embedding": {"mean": rounded(summed_NP.mean(axis=0)), "std": rounded(summed_NP.std(axis=0))},
        "notes": notes,
    }
    return tokenizer, statistics


def _kept(images: Iterable[tuple[str, Images]], size: int, seed: int) -> tuple[dict[str, Images], int]:
    """Return the images that the fit works on, and how many different ones there were."""
    most = min(MOST_IMAGES, max(1, MOST_PIXEL_BYTES // (size * size * 3)))
    kept, order, seen = dict[str, Images](), dict[str, int](), set[str]()
    for name, pixels_HWC in images:
        if pixels_HWC.dtype != np.uint8 or pixels_HWC.shape != (size, size, 3):
            raise TokenizerError(f"fit: an image is {pixels_HWC.dtype} {pixels_HWC.shape}; expected uint8 ({size}, {size}, 3)")
        seen.add(name)
        kept[name], order[name] = pixels_HWC, keyed_hash64(str(seed), name)
        if len(kept) >= 2 * most:
            _trim(kept, order, most)
    _trim(kept, order, most)
    if not kept:
        raise TokenizerError("fit: there is no image to fit a tokenizer to; expected at least 1. Check that the source can be decoded")
    return kept, len(seen)


def _trim(kept: dict[str, Images], order: dict[str, int], most: int) -> None:
    for name in sorted(kept, key=lambda name: (order[name], name))[most:]:
        del kept[name], order[name]


def _batches(kept: dict[str, Images], names: list[str]) -> Iterator[Images]:
    for start in range(0, len(names), TOGETHER):
        yield np.stack([kept[name] for name in names[start : start + TOGETHER]])


def _layer(kept: dict[str, Images], number: int, config: LayeredFitConfig, rng: np.random.Generator) -> PatchLayer:
    """Fit a layer to patches of the images in its view. What is stored in float16 is rounded before anything is fitted to it."""
    sample, patches = RowSample(config.max_patches, config.seed), PatchRows(next(iter(kept.values())).shape[0], VIEWS[number])
    for name in sorted(kept):
        sample.add(name, patches(kept[name]) / np.float32(COLOURS))
    patches_ND = np.concatenate([rows for _, rows in sorted(sample.rows().items())])
    centre_D = halves(patches_ND.mean(axis=0, dtype=np.float64))
    apart_ND = patches_ND.astype(np.float64) - centre_D
    values_D, vectors_DD = np.linalg.eigh(apart_ND.T @ apart_ND / len(apart_ND))  # ascending
    strength = 1 / np.sqrt(np.maximum(values_D, 0) + max(EPSILON * float(values_D.mean()), LEAST_VARIANCE))
    whitening_DW = (vectors_DD * strength)[:, ::-1][:, :WHITENED]
    largest_W = whitening_DW[np.abs(whitening_DW).argmax(axis=0), np.arange(WHITENED)]  # the sign of a direction is arbitrary
    whitening_DW = halves(np.ascontiguousarray(whitening_DW * np.sign(largest_W)))
    values_NW = ((patches_ND - centre_D) @ whitening_DW).astype(np.float32)
    nothing, count = np.zeros((0, WHITENED), np.float32), CENTROIDS[number]
    centroids_KW = kmeans(values_NW, np.ones(len(values_NW)), count, pinned_PD=nothing, iterations=config.iterations, rng=rng)
    return PatchLayer(centre_D, whitening_DW, halves(centroids_KW))


def _second_layer(layers: tuple[PatchLayer, ...], kept: dict[str, Images], config: LayeredFitConfig) -> tuple[LayeredFeatures, RowSample]:
    """Return the features with their projection, and a sample of projected sites."""
    plain = LayeredFeatures(config.site, layers, np.zeros((0, 0), np.float32))
    agreement, sample = Agreement(plain.width), RowSample(config.max_patches, config.seed)
    names, size = sorted(kept), next(iter(kept.values())).shape[0]
    together = max(1, TOGETHER_SITES * config.site**2 // size**2)
    for start in range(0, len(names), together):
        part = names[start : start + together]
        seeds = [keyed_hash64(str(config.seed), name) for name in part]
        images_BHWC = np.stack([kept[name] for name in part])
        copies_BHWC = np.stack([changed_copy(image, np.random.default_rng(seed)) for image, seed in zip(images_BHWC, seeds, strict=True)])
        own_BLA = plain.sites(images_BHWC)
        agreement.add(own_BLA, plain.sites(copies_BHWC), (size // config.site, size // config.site))
        for name, own_LA in zip(part, own_BLA, strict=True):
            sample.add(name, own_LA.astype(np.float16))  # the largest arrays of a fit
    projection_AP = halves(agreement.projection(min(PROJECTED, plain.width)))
    projected = RowSample(config.max_patches, config.seed)
    for name, rows_mA in sample.rows().items():
        projected.add(name, rows_mA.astype(np.float32) @ projection_AP)
    return LayeredFeatures(config.site, layers, projection_AP), projected
