"""Structural similarity (SSIM) as published: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment", 2004.

Computed on luma, in every window of 11 x 11 pixels inside the image, weighted by a Gaussian of 1.5 pixels. Images are not downscaled.

Shapes: B images, H height, W width, C = 3 channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["SSIM_WINDOW", "ssim"]

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

SSIM_WINDOW = 11
"""Side of the window in pixels; a smaller image has no SSIM."""
SIGMA = 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G and B by ITU-R BT.601, which JPEG uses too."""

_OFFSETS = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
_WEIGHTS = np.exp(-(_OFFSETS**2) / (2 * SIGMA**2))
_WEIGHTS /= _WEIGHTS.sum()


def ssim(originals_BHWC: Images, reconstructions_BHWC: Images) -> Floats:
    """Return the mean SSIM of each uint8 RGB image [B]; 1 means equal. Raises ValueError for unequal shapes or sides below SSIM_WINDOW."""
    if originals_BHWC.shape != reconstructions_BHWC.shape or min(originals_BHWC.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"originals are {originals_BHWC.shape}, reconstructions {reconstructions_BHWC.shape}; expected equal shapes and sides of "
            f"{SSIM_WINDOW} pixels or more"
        )
    pairs = zip(originals_BHWC, reconstructions_BHWC, strict=True)  # one image at a time, so that its maps stay in the CPU cache
    return np.array([_ssim_of_one(left_HWC @ LUMA, right_HWC @ LUMA) for left_HWC, right_HWC in pairs], np.float64)


def _ssim_of_one(left_HW: Floats, right_HW: Floats) -> float:
    maps = np.stack([left_HW, right_HW, left_HW**2 + right_HW**2, left_HW * right_HW])
    mean_left, mean_right, squares, product = _windowed(_windowed(maps, 2), 1)
    means, covariance = mean_left * mean_right, product - mean_left * mean_right
    mean_squares = mean_left**2 + mean_right**2
    variances = squares - mean_squares
    similarity = (2 * means + C1) * (2 * covariance + C2) / ((mean_squares + C1) * (variances + C2))
    return float(similarity.mean())


def _windowed(maps_NHW: Floats, axis: int) -> Floats:
    """Return the weighted mean of each window along an axis; the axis becomes 10 shorter."""
    places = maps_NHW.shape[axis] - SSIM_WINDOW + 1
    rest = (slice(None),) * axis
    total: Floats = _WEIGHTS[0] * maps_NHW[(*rest, slice(places))]
    scaled = np.empty_like(total)
    for offset, weight in enumerate(_WEIGHTS[1:], 1):
        total += np.multiply(maps_NHW[(*rest, slice(offset, offset + places))], weight, out=scaled)
    return total
