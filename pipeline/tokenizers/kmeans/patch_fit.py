"""Fits the tables of residual patch k-means to a sample of images: the same tables for the same images in any order.

Shapes: B images, L patches of an image, N rows of patches, Q levels, K codes of a level, D = patch * patch * 3 values of a patch.
Colours inside this module run from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.tokenizers.base import Images
from tokenshards.pipeline.tokenizers.code_usage import code_usage, rounded
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.kmeans.lloyd import cover, kmeans
from tokenshards.pipeline.tokenizers.kmeans.patches import images_to_patches
from tokenshards.pipeline.tokenizers.kmeans.row_sample import RowSample
from tokenshards.pipeline.tokenizers.nearest_code import nearest_rows
from tokenshards.pipeline.tokenizers.psnr import psnr_db

__all__ = ["fit_tables"]

Floats = npt.NDArray[np.float32]

ANCHOR_SHARE = 0.125
"""A patch that repeats exactly over this share of an image becomes a code, however rare the patch is in the whole sample."""
ANCHOR_RADIUS = 3.0
"""Anchors closer to each other than this (root mean square, of 255) count as one."""
PATCHES_PER_CODE = 50
"""Fewest patches per code; with fewer the codes would memorise the sample."""
MIN_CODES = 16
"""Fewest codes, even for the smallest sample."""
LOW_RANK_LOSS = 0.005
"""Share of the remaining squared error that cheaper tables may add: 0.02 dB."""


def fit_tables(images: Iterable[tuple[str, Images]], config: FitConfig, size: int) -> tuple[list[Floats], dict[str, Any]]:
    """Return tables [K, D] in colours from 0 to 1, level by level, and statistics in plain JSON types."""
    drawn = _draw_patches(images, config, size)
    patches_ND = np.concatenate(list(drawn.values()))
    image_N = np.repeat(np.arange(len(drawn)), [len(patches_LD) for patches_LD in drawn.values()])
    distinct_ND, which_N, weights_N = _distinct(patches_ND)  # sorted by value: the order of the images no longer matters
    codes = min(config.codes, max(MIN_CODES, len(patches_ND) // PATCHES_PER_CODE))
    rng = np.random.default_rng(config.seed)

    colours_ND = distinct_ND.astype(np.float32)
    rest_ND = colours_ND.copy()
    centres: list[Floats] = []
    for q in range(config.levels):
        if q == 0:
            repeated = colours_ND[_repeated_patches(image_N, which_N)]
            pinned_PD = repeated[cover(repeated, codes * 3 // 4, ANCHOR_RADIUS)]
        else:
            pinned_PD = np.zeros((1, rest_ND.shape[1]), dtype=np.float32)  # patches without an error must keep none
        centres.append(_ordered(kmeans(rest_ND, weights_N, codes, pinned_PD=pinned_PD, iterations=config.iterations, rng=rng)))
        rest_ND -= centres[q][nearest_rows(rest_ND, centres[q])]
    centres = _low_rank(centres, float(np.average(np.square(rest_ND).mean(axis=1), weights=weights_N)))

    rest_ND = colours_ND.copy()
    levels = []
    for centres_KD in centres:
        nearest_N = nearest_rows(rest_ND, centres_KD)
        rest_ND -= centres_KD[nearest_N]
        levels.append(_level_statistics(nearest_N, weights_N, len(centres_KD), colours_ND, rest_ND))
    tables = [centres_KD / np.float32(255) for centres_KD in centres]
    summed_ND = (colours_ND - rest_ND) / np.float32(255)
    mean_D = np.average(summed_ND, axis=0, weights=weights_N)
    std_D = np.sqrt(np.average(np.square(summed_ND - mean_D), axis=0, weights=weights_N))
    notes = []
    if codes < config.codes:
        notes.append(f"codes limited from {config.codes} to {codes}: one for each {PATCHES_PER_CODE} of {len(patches_ND)} patches")
    if any(len(table) < codes for table in tables):
        notes.append(f"vocabulary {[len(table) for table in tables]}: the images hold no more different patches")
    statistics = {
        "images": len(drawn),
        "patches": len(patches_ND),
        "distinct_patches": len(distinct_ND),
        "fit": {"seed": config.seed, "iterations": config.iterations, "codes": config.codes, "max_patches": config.max_patches},
        "levels": levels,
        "embedding": {"mean": rounded(mean_D), "std": rounded(std_D)},
        "notes": notes,
    }
    return tables, statistics


def _draw_patches(images: Iterable[tuple[str, Images]], config: FitConfig, size: int) -> dict[str, Images]:
    """Return some patches [m, D] of each image by content hash, as many of each image as `max_patches` allows."""
    sample = RowSample(config.max_patches, config.seed)
    for sha256, pixels_HWC in images:
        if pixels_HWC.shape != (size, size, 3) or pixels_HWC.dtype != np.uint8:
            raise TokenizerError(f"fit: image {sha256} is {pixels_HWC.dtype} {pixels_HWC.shape}; expected uint8 ({size}, {size}, 3)")
        sample.add(sha256, images_to_patches(pixels_HWC[None], config.patch))
    drawn = sample.rows()
    if not drawn:
        raise TokenizerError("fit: there is no image to fit a tokenizer to; expected at least 1. Check that the source can be decoded")
    return drawn


def _distinct(patches_ND: Images) -> tuple[Images, npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return the distinct rows, the distinct row of each row, and the count of each distinct row."""
    rows_N = patches_ND.view(np.dtype((np.void, patches_ND.shape[1])))[:, 0]
    _, first_N, which_N, counts_N = np.unique(rows_N, return_index=True, return_inverse=True, return_counts=True)
    return patches_ND[first_N], which_N, counts_N.astype(np.float64)


def _repeated_patches(image_N: npt.NDArray[np.intp], which_N: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return the distinct patches that fill a good part of some image: plain grounds and flat colours, the most common first.

    A mean over many photographs would blur such patches, and the eye would notice.
    """
    pairs_M, counts_M = np.unique(image_N * (which_N.max() + 1) + which_N, return_counts=True)
    drawn_I = np.bincount(image_N)
    often_M = counts_M >= np.maximum(2, ANCHOR_SHARE * drawn_I[pairs_M // (which_N.max() + 1)])
    patch_A, where_A = np.unique(pairs_M[often_M] % (which_N.max() + 1), return_inverse=True)
    ranked_A: npt.NDArray[np.intp] = patch_A[np.argsort(-np.bincount(where_A, weights=counts_M[often_M]), kind="stable")]
    return ranked_A


def _ordered(centres_KD: Floats) -> Floats:
    """Sort codes along the first principal component, the darkest end first, so that neighbouring ids look alike."""
    centred_KD = centres_KD - centres_KD.mean(axis=0)
    along_K = centred_KD @ np.linalg.svd(centred_KD, full_matrices=False)[2][0]
    luminance_K = centred_KD.reshape(len(centres_KD), -1, 3).mean(axis=1) @ np.array([0.299, 0.587, 0.114])
    sign = -1.0 if along_K @ luminance_K < 0 else 1.0
    return centres_KD[np.argsort(sign * along_K, kind="stable")]


def _low_rank(centres: list[Floats], error: float) -> list[Floats]:
    """Drop directions of the tables that matter far less than the mean squared error that remains anyway.

    The search works within the span of the tables (`_span`), so each dropped direction makes encoding faster. On photographs half of the
    directions go. Flat colours are kept exactly.
    """
    rows_ND = np.concatenate(centres).astype(np.float64)
    flat_ND = np.tile(rows_ND.reshape(len(rows_ND), -1, 3).mean(axis=1), rows_ND.shape[1] // 3)
    _, strength_R, directions_RD = np.linalg.svd(rows_ND - flat_ND, full_matrices=False)
    lost_R = np.append(np.cumsum(np.square(strength_R)[::-1])[::-1], 0.0) / rows_ND.size
    kept_RD = directions_RD[: int(np.argmax(lost_R <= LOW_RANK_LOSS * error))]
    low_ND = flat_ND + ((rows_ND - flat_ND) @ kept_RD.T) @ kept_RD
    return np.split(low_ND.astype(np.float32), np.cumsum([len(centres_KD) for centres_KD in centres])[:-1])


def _level_statistics(
    nearest_N: npt.NDArray[np.intp], weights_N: npt.NDArray[np.float64], codes: int, colours_ND: Floats, rest_ND: Floats
) -> dict[str, Any]:
    missing_ND = colours_ND - np.clip(np.rint(colours_ND - rest_ND), 0, 255)
    error = float(np.average(np.square(missing_ND).mean(axis=1), weights=weights_N))
    return {**code_usage(np.bincount(nearest_N, weights=weights_N, minlength=codes)), "psnr_db": rounded([psnr_db(error)])[0]}
