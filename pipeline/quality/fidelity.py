"""Fidelity of reconstructions (PSNR), and a table of code usage.

Shapes: B images, H height, W width, C = 3 channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.tokenizers.psnr import MAX_PSNR_DB, psnr_db

__all__ = ["Fidelity", "psnr", "usage_rows"]

Images = npt.NDArray[np.uint8]


def psnr(original: Images, reconstruction: Images) -> float:
    """Return the peak signal-to-noise ratio in dB of two uint8 arrays of one shape, at most MAX_PSNR_DB."""
    return psnr_db(float(_squared_errors(original[None], reconstruction[None])[0]))


class Fidelity:
    """Accumulates over batches the mean PSNR of the images, and the PSNR over all pixels, which bad images dominate."""

    def __init__(self) -> None:
        self.images = 0
        self.worst_psnr_db = MAX_PSNR_DB
        self._sum_psnr_db = 0.0
        self._sum_squared_error = 0.0

    def add(self, originals_BHWC: Images, reconstructions_BHWC: Images) -> None:
        """Add a batch of uint8 images and their reconstructions; every image has the same weight."""
        for error in _squared_errors(originals_BHWC, reconstructions_BHWC):
            decibel = psnr_db(float(error))
            self.images += 1
            self.worst_psnr_db = min(self.worst_psnr_db, decibel)
            self._sum_psnr_db += decibel
            self._sum_squared_error += float(error)

    @property
    def mean_psnr_db(self) -> float:
        """Mean PSNR of the images in dB; nan before the first image."""
        return self._sum_psnr_db / self.images if self.images else float("nan")

    @property
    def pixel_psnr_db(self) -> float:
        """PSNR in dB of the mean squared error over all images; nan before the first image."""
        return psnr_db(self._sum_squared_error / self.images) if self.images else float("nan")


def usage_rows(usage: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the results of `code_usage`, one per level, as (name, value) text."""
    rows = []
    for level, row in enumerate(usage):
        codes = f"{row['used_codes']:,} of {row['codes']:,} used, {row['dead_codes']:,} dead"
        rows.append((f"level {level}", f"{codes}, perplexity {row['perplexity']:.0f}, {row['entropy_bits']:.2f} bits"))
    return rows


def _squared_errors(originals_BHWC: Images, reconstructions_BHWC: Images) -> npt.NDArray[np.float64]:
    """Return the mean squared error of each image [B]; raises ValueError for different shapes, which broadcasting would hide."""
    if originals_BHWC.shape != reconstructions_BHWC.shape:
        raise ValueError(f"originals are {originals_BHWC.shape}, reconstructions {reconstructions_BHWC.shape}; expected equal shapes")
    difference = originals_BHWC.astype(np.float32) - reconstructions_BHWC
    errors_B: npt.NDArray[np.float64] = np.square(difference).reshape(len(difference), -1).mean(axis=1, dtype=np.float64)
    return errors_B
