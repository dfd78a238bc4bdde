"""Fit a tokenizer on a sample of the user's own images, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.sources.sample import SampledImage, decoded_sample
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.config import FitConfig, LatentFitConfig, LayeredFitConfig, OwnFitConfig, VqFitConfig
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import choose_size, default_preprocess, fit_patch_kmeans
from tokenshards.pipeline.tokenizers.layered.layered_fit import fit_layered_kmeans

if TYPE_CHECKING:  # they load torch
    from torch import Tensor

    from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import LatentEncoder
    from tokenshards.pipeline.tokenizers.fitted.training_state import TrainingState

__all__ = [
    "FittedTokenizer",
    "count_codes",
    "fit_latent_tokenizer",
    "fit_layered_tokenizer",
    "fit_own_tokenizer",
    "fit_tokenizer",
    "fit_vq_tokenizer",
]

SIZE_SAMPLE = 256
COUNTED_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class FittedTokenizer:
    """A tokenizer with the statistics of its fit."""

    tokenizer: Tokenizer
    statistics: dict[str, Any]
    notes: tuple[str, ...]
    """Sentences about the fit for the user."""


@dataclass(slots=True)
class _Seen:
    """Counts of the sampled inputs."""

    bytes_in: list[int] = field(default_factory=list)
    """Encoded bytes of each decoded image."""
    hashes: set[str] = field(default_factory=set)
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    """The first three failures."""

    def notes(self) -> Iterator[str]:
        """Yield a line about repeated images, and one about failed inputs."""
        decoded = len(self.bytes_in)
        if decoded > len(self.hashes):
            yield f"{decoded - len(self.hashes):,} of {decoded:,} sampled images are byte for byte equal to another one and count only once"
        if self.failed:
            yield f"{self.failed:,} of {decoded + self.failed:,} sampled inputs could not be decoded, such as {self.failures[0]}"


def fit_own_tokenizer(source: ImageSource, sample: list[PlanRow], config: OwnFitConfig) -> FittedTokenizer:
    """Fit a tokenizer of the kind that the config is for, on the sampled rows of a source; the order of the rows does not matter.

    Raises TokenizerError if no sampled input can be decoded.
    """
    if isinstance(config, LayeredFitConfig):
        return fit_layered_tokenizer(source, sample, config)
    return fit_tokenizer(source, sample, config)


def fit_tokenizer(source: ImageSource, sample: list[PlanRow], config: FitConfig) -> FittedTokenizer:
    """Fit the default tokenizer on the sampled rows of a source; the order of the rows does not matter.

    Raises TokenizerError if no sampled input can be decoded.
    """
    size = config.size or _size(source, sample, min(SIZE_SAMPLE, config.sample), config.patch)
    preprocess = default_preprocess(size, DECODER)
    seen = _Seen()
    tokenizer, statistics = fit_patch_kmeans(_hashed(source, sample, config.sample, preprocess, seen), config, size, preprocess)
    return _with_notes(tokenizer, statistics, seen)


def fit_layered_tokenizer(source: ImageSource, sample: list[PlanRow], config: LayeredFitConfig) -> FittedTokenizer:
    """Fit two layers of k-means on the sampled rows of a source; the order of the rows does not matter.

    Raises TokenizerError if no sampled input can be decoded.
    """
    size = config.size or max(2 * config.site, _size(source, sample, min(SIZE_SAMPLE, config.sample), config.site))
    preprocess = default_preprocess(size, DECODER)
    seen = _Seen()
    tokenizer, statistics = fit_layered_kmeans(_hashed(source, sample, config.sample, preprocess, seen), config, size, preprocess)
    return _with_notes(tokenizer, statistics, seen)


def fit_latent_tokenizer(source: ImageSource, sample: list[PlanRow], config: LatentFitConfig, encoder: LatentEncoder) -> FittedTokenizer:
    """Fit codes to the latents of a published encoder on the sampled rows of a source; the order of the rows does not matter.

    Raises TokenizerError if no sampled input can be decoded.
    """
    from tokenshards.pipeline.tokenizers.fitted.latent_fit import fit_latent_kmeans  # loads torch

    preprocess = Preprocess(size=config.size, resize="crop", filter="bicubic", decode_mode="full", exif_orientation=True, decoder=DECODER)
    seen = _Seen()
    tokenizer, statistics = fit_latent_kmeans(_hashed(source, sample, config.sample, preprocess, seen), encoder, config, preprocess)
    return _with_notes(tokenizer, statistics, seen)


def fit_vq_tokenizer(
    source: ImageSource,
    sample: list[PlanRow],
    config: VqFitConfig,
    *,
    state: TrainingState,
    features: Callable[[Tensor, Tensor], Tensor] | None,
    on_epoch: Callable[[dict[str, Any]], None],
) -> FittedTokenizer:
    """Train a small autoencoder with codes on the sampled rows of a source; the order of the rows does not matter.

    Raises TokenizerError if fewer than 2 sampled inputs can be decoded, or if `state` belongs to another training.
    """
    from tokenshards.pipeline.tokenizers.fitted.vq_autoencoder import COLOURS  # loads torch
    from tokenshards.pipeline.tokenizers.fitted.vq_training import fit_vq_autoencoder

    size = config.size or _size(source, sample, min(SIZE_SAMPLE, config.sample), config.patch)
    preprocess = replace(default_preprocess(size, DECODER), colour_range=COLOURS)
    seen = _Seen()
    hashed = _hashed(source, sample, config.sample, preprocess, seen)
    tokenizer, statistics = fit_vq_autoencoder(hashed, config, preprocess, state=state, features=features, on_epoch=on_epoch)
    return _with_notes(tokenizer, statistics, seen)


def _size(source: ImageSource, sample: list[PlanRow], limit: int, patch: int) -> int:
    """Return the side in pixels that suits the first images."""
    probe = default_preprocess(patch * max(1, 32 // patch), DECODER)
    return choose_size([min(found.image.width, found.image.height) for found in _decoded(source, sample, limit, probe)], patch)


def count_codes(source: ImageSource, sample: list[PlanRow], limit: int, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return the uses [K] of each code of a tokenizer with one level, over up to `limit` images of a source.

    Raises TokenizerError if no sampled input can be decoded.
    """
    counts_K = np.zeros(tokenizer.spec.vocabulary[0], np.int64)
    decoded = _decoded(source, sample, limit, tokenizer.spec.preprocess)
    while some := list(islice(decoded, COUNTED_TOGETHER)):
        ids_BLQ = tokenizer.encode(np.stack([found.image.pixels_HWC for found in some])).ids_BLQ
        counts_K += np.bincount(ids_BLQ.ravel(), minlength=len(counts_K))
    return counts_K


def _hashed(
    source: ImageSource, sample: list[PlanRow], limit: int, preprocess: Preprocess, seen: _Seen
) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Yield content hash and pixels of each decoded image; count it in `seen`."""
    for found in _decoded(source, sample, limit, preprocess, seen):
        yield found.sha256, found.image.pixels_HWC


def _with_notes(tokenizer: Tokenizer, statistics: dict[str, Any], seen: _Seen) -> FittedTokenizer:
    notes = [*seen.notes(), *statistics.get("notes", ())]
    raw_bytes = tokenizer.spec.layout.sites * tokenizer.spec.layout.ids_per_site * tokenizer.spec.id_dtype.itemsize
    mean_bytes = float(np.mean(seen.bytes_in))
    if raw_bytes >= mean_bytes:
        side = "--site" if "site" in tokenizer.spec.config else "--patch"
        notes.append(
            f"the tokens of an image take up to {raw_bytes:,} bytes before compression, its file {mean_bytes:,.0f} on average: "
            f"use a smaller --size, a larger {side} or --levels 1 to save space"
        )
    return FittedTokenizer(tokenizer, statistics, tuple(notes))


def _decoded(
    source: ImageSource, sample: list[PlanRow], limit: int, preprocess: Preprocess, seen: _Seen | None = None
) -> Iterator[SampledImage]:
    """Yield the decoded images among up to `limit` inputs; count all in `seen`. Raises TokenizerError if none decodes."""
    seen = seen or _Seen()
    for outcome in decoded_sample(source, sample, limit, preprocess):
        if isinstance(outcome, SampledImage):
            seen.bytes_in.append(outcome.bytes_in)
            seen.hashes.add(outcome.sha256)
            yield outcome
            continue
        seen.failed += 1
        if len(seen.failures) < 3:
            seen.failures.append(f"{outcome.sample_id}: {outcome.error}")
    if not seen.bytes_in:
        raise TokenizerError(
            f"no tokenizer can be fitted: none of {len(sample)} sampled inputs holds an image that decodes "
            f"({'; '.join(seen.failures) or 'no image was found'}). Check the source, or give a tokenizer with --tokenizer"
        )
