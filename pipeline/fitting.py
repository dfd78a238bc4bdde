"""Fitting a tokenizer on a sample of the user's own images, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.config import FitConfig, LatentFitConfig
from pipeline.decode import DECODER
from pipeline.errors import TokenizerError
from pipeline.image_sample import SampledImage, decoded_sample
from pipeline.records import PlanRow
from pipeline.shards.spec import Preprocess
from pipeline.sources.base import ImageSource
from pipeline.tokenizers.base import Tokenizer
from pipeline.tokenizers.patch_kmeans import choose_size, default_preprocess, fit_patch_kmeans

if TYPE_CHECKING:
    from pipeline.tokenizers.latent_kmeans import LatentEncoder  # loads torch

__all__ = ["FittedTokenizer", "count_codes", "fit_latent_tokenizer", "fit_tokenizer"]

SIZE_SAMPLE = 256
COUNTED_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class FittedTokenizer:
    """A tokenizer with what was measured while it was fitted."""

    tokenizer: Tokenizer
    statistics: dict[str, Any]
    notes: tuple[str, ...]
    """What a person should know of the fit."""


def fit_tokenizer(source: ImageSource, sample: list[PlanRow], config: FitConfig) -> FittedTokenizer:
    """Fit the default tokenizer on the sampled rows of a source; the order of the rows does not matter.

    Raises TokenizerError when no sampled input can be decoded.
    """
    size = config.size
    if size is None:
        probe = default_preprocess(config.patch * max(1, 32 // config.patch), DECODER)
        sides = [min(found.image.width, found.image.height) for found in _decoded(source, sample, min(SIZE_SAMPLE, config.sample), probe)]
        size = choose_size(sides, config.patch)
    preprocess = default_preprocess(size, DECODER)
    byte_counts: list[int] = []
    tokenizer, statistics = fit_patch_kmeans(_hashed(source, sample, config.sample, preprocess, byte_counts), config, size, preprocess)
    return _with_notes(tokenizer, statistics, byte_counts)


def fit_latent_tokenizer(source: ImageSource, sample: list[PlanRow], config: LatentFitConfig, encoder: LatentEncoder) -> FittedTokenizer:
    """Fit codes to the latents of a published encoder on the sampled rows of a source; the order of the rows does not matter.

    Raises TokenizerError when no sampled input can be decoded.
    """
    from pipeline.tokenizers.latent_fit import fit_latent_kmeans  # loads torch

    preprocess = Preprocess(size=config.size, resize="crop", filter="bicubic", decode_mode="full", exif_orientation=True, decoder=DECODER)
    byte_counts: list[int] = []
    tokenizer, statistics = fit_latent_kmeans(_hashed(source, sample, config.sample, preprocess, byte_counts), encoder, config, preprocess)
    return _with_notes(tokenizer, statistics, byte_counts)


def count_codes(source: ImageSource, sample: list[PlanRow], limit: int, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return how often each code of a tokenizer of one level occurs in up to `limit` images of a source, as [K].

    Raises TokenizerError when no sampled input can be decoded.
    """
    counts_K = np.zeros(tokenizer.spec.vocabulary[0], np.int64)
    decoded = _decoded(source, sample, limit, tokenizer.spec.preprocess)
    while some := list(islice(decoded, COUNTED_TOGETHER)):
        ids_BLQ = tokenizer.encode(np.stack([found.image.pixels_HWC for found in some])).ids_BLQ
        counts_K += np.bincount(ids_BLQ.ravel(), minlength=len(counts_K))
    return counts_K


def _hashed(
    source: ImageSource, sample: list[PlanRow], limit: int, preprocess: Preprocess, byte_counts: list[int]
) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Yield content hash and pixels of each image that decodes; its bytes are added to `byte_counts`."""
    for found in _decoded(source, sample, limit, preprocess):
        byte_counts.append(found.bytes_in)
        yield found.sha256, found.image.pixels_HWC


def _with_notes(tokenizer: Tokenizer, statistics: dict[str, Any], byte_counts: list[int]) -> FittedTokenizer:
    notes = list(statistics.get("notes", ()))
    raw_bytes = tokenizer.spec.layout.sites * tokenizer.spec.layout.ids_per_site * tokenizer.spec.id_dtype.itemsize
    mean_bytes = float(np.mean(byte_counts))
    if raw_bytes >= mean_bytes:
        notes.append(
            f"the tokens of an image take up to {raw_bytes:,} bytes before compression, the source {mean_bytes:,.0f} on average: "
            "use a smaller --size, a larger --patch or --levels 1 to save space"
        )
    return FittedTokenizer(tokenizer, statistics, tuple(notes))


def _decoded(source: ImageSource, sample: list[PlanRow], limit: int, preprocess: Preprocess) -> Iterator[SampledImage]:
    """Yield what decodes of up to `limit` images; raises TokenizerError when nothing does."""
    failures: list[str] = []
    decoded = 0
    for outcome in decoded_sample(source, sample, limit, preprocess):
        if isinstance(outcome, SampledImage):
            decoded += 1
            yield outcome
        elif len(failures) < 3:
            failures.append(f"{outcome.sample_id}: {outcome.error}")
    if not decoded:
        raise TokenizerError(
            f"no tokenizer can be fitted: none of {len(sample)} sampled inputs holds an image that decodes "
            f"({'; '.join(failures) or 'no image was found'}). Check the source, or give a tokenizer with --tokenizer"
        )
