"""Encode images and, if the tokenizer can, decode them: measure fidelity, code usage and time.

Shapes: B images, H height, W width, C = 3 channels, K codes of a level.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.quality.fidelity import Fidelity
from tokenshards.pipeline.quality.ssim import SSIM_WINDOW, ssim
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, Images, Tokenizer

__all__ = ["RoundTrip"]

MAX_COUNTED_CODES = 1 << 24
"""Most codes, over all levels together, whose uses are counted; a count takes 8 bytes."""


class RoundTrip:
    """Sends batches of uint8 images through a tokenizer and accumulates the measurements; keeps no batch."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        sizes = tokenizer.spec.vocabulary
        self.images = 0
        self.ids = 0
        """Number of ids without padding."""
        self.histograms = [np.zeros(size, np.int64) for size in sizes] if sum(sizes) <= MAX_COUNTED_CODES else None
        """Uses of each code [K] per level; None if there are too many codes to count."""
        self.fidelity = Fidelity()
        self.sum_ssim = 0.0
        self.worst_ssim = 1.0
        self.encode_seconds = self.decode_seconds = 0.0
        self.no_images = ""
        """Why no image was decoded; empty if images were."""
        side = tokenizer.spec.preprocess.size
        self.no_ssim = "" if side >= SSIM_WINDOW else f"images of {side} px are smaller than SSIM's window of {SSIM_WINDOW} px"

    def warm_up(self) -> None:
        """Send one black image through, so that the time to build the networks is not measured."""
        side = self._tokenizer.spec.preprocess.size
        tokens = self._tokenizer.encode(np.zeros((1, side, side, 3), np.uint8))
        try:
            self._tokenizer.decode(tokens)
        except DecodeNotSupported as error:
            self.no_images = str(error)

    def add(self, images_BHWC: Images, *, with_ssim: bool = True) -> None:
        """Encode a batch [B, H, W, C], decode it if possible, and add its measurements."""
        begun = time.perf_counter()
        tokens = self._tokenizer.encode(images_BHWC)
        self.encode_seconds += time.perf_counter() - begun
        self.images += len(tokens)
        self.ids += int(tokens.sites_B.sum()) * tokens.ids_BLQ.shape[2]
        if self.histograms is not None:
            for total_K, counts_K in zip(self.histograms, tokens.count_ids(self._tokenizer.spec.vocabulary), strict=True):
                total_K += counts_K
        if not self.no_images:
            self._compare(images_BHWC, tokens, with_ssim)

    @property
    def mean_ssim(self) -> float | None:
        """Mean SSIM of the images; None if it was not measured."""
        return self.sum_ssim / self.fidelity.images if self.fidelity.images and not self.no_ssim else None

    def _compare(self, images_BHWC: Images, tokens: TokenBatch, with_ssim: bool) -> None:
        begun = time.perf_counter()
        try:
            decoded_BHWC = self._tokenizer.decode(tokens)
        except DecodeNotSupported as error:
            self.no_images = str(error)
            return
        self.decode_seconds += time.perf_counter() - begun
        if decoded_BHWC.shape != images_BHWC.shape:
            self.no_images = (
                f"decoded images have the shape {decoded_BHWC.shape[1:]}; expected {images_BHWC.shape[1:]}, the shape of the input"
            )
            return
        self.fidelity.add(images_BHWC, decoded_BHWC)
        if with_ssim and not self.no_ssim:
            ssim_B: npt.NDArray[np.float64] = ssim(images_BHWC, decoded_BHWC)
            self.sum_ssim += float(ssim_B.sum())
            self.worst_ssim = min(self.worst_ssim, float(ssim_B.min()))
