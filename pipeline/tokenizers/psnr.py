"""Peak signal-to-noise ratio of colours from 0 to 255, in dB.

Shapes: B images, H height, W width, C = 3 channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_PSNR_DB", "image_psnr_db", "psnr_db"]

MAX_PSNR_DB = 100.0
"""The PSNR of equal colours, finite so that means and JSON stay finite."""
LEAST_ERROR = 1e-5
"""The PSNR of equal images in the statistics of a fit, 98 dB. Those statistics are stored, so this stays apart from MAX_PSNR_DB."""


def psnr_db(squared_error: float) -> float:
    """Return the PSNR of a mean squared error, at most MAX_PSNR_DB."""
    return MAX_PSNR_DB if squared_error == 0 else min(MAX_PSNR_DB, float(10 * np.log10(255.0**2 / squared_error)))


def image_psnr_db(originals_BHWC: npt.NDArray[np.uint8], reconstructions_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the PSNR [B] of uint8 images of one shape, as in the statistics of a fit: float32, at most 98 dB."""
    error_B = np.square(reconstructions_BHWC.astype(np.float32) - originals_BHWC).mean(axis=(1, 2, 3))
    decibels_B: npt.NDArray[np.float32] = 10 * np.log10(255**2 / np.maximum(error_B, LEAST_ERROR))
    return decibels_B
