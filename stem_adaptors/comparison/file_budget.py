"""The settings of JPEG or WebP that keep most of an image in a given number of bytes: resolution, chroma sampling and quality.

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.quality.fidelity import psnr
from tokenshards.pipeline.tokenizers.pixels.small_file import SUBSAMPLINGS, SmallFile, resized

__all__ = ["best_file"]

SIDES = (1 / 8, 3 / 16, 1 / 4, 5 / 16, 3 / 8, 7 / 16, 1 / 2, 5 / 8, 3 / 4, 1)
"""Of the image's side."""
QUALITIES = (*range(1, 20), *range(20, 50, 2), *range(50, 98, 3))


def best_file(format: str, images_NHWC: npt.NDArray[np.uint8], budget: float) -> tuple[SmallFile, float] | None:
    """Return the file of highest mean PSNR whose mean bytes fit the budget, with these bytes; None where no file is so small.

    One setting serves all images. Files grow with the quality, so that bisection finds the highest one that fits.
    """
    best: tuple[float, SmallFile, float] | None = None
    for side, subsampling in _shapes(format, images_NHWC.shape[1]):
        files = [SmallFile(format=format, side=side, quality=quality, subsampling=subsampling) for quality in QUALITIES]
        small = [resized(image_HWC, side) for image_HWC in images_NHWC]
        place = _last_fitting(files, small, budget)
        if place is None:
            continue
        found = [files[place].stored(image_HWC) for image_HWC in small]
        size = images_NHWC.shape[1]
        quality = float(np.mean([psnr(image, resized(back, size)) for image, (_, back) in zip(images_NHWC, found, strict=True)]))
        if best is None or quality > best[0]:
            best = quality, files[place], float(np.mean([count for count, _ in found]))
    return None if best is None else best[1:]


def _shapes(format: str, size: int) -> Iterator[tuple[int, str]]:
    for side in sorted({max(1, round(size * share)) for share in SIDES}):
        for subsampling in SUBSAMPLINGS if format == "jpeg" else ("4:2:0",):
            yield side, subsampling


def _last_fitting(files: Sequence[SmallFile], images: Sequence[npt.NDArray[np.uint8]], budget: float) -> int | None:
    """Return the place of the last file that fits; None where the first does not."""
    low, high = -1, len(files)
    while high - low > 1:
        middle = (low + high) // 2
        fits = float(np.mean([files[middle].stored(image)[0] for image in images])) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return None if low < 0 else low
