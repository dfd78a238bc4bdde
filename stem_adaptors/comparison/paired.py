"""Means and differences of accuracies with intervals: a bootstrap in which all sides share the drawn images and seeds.

Shapes: S seeds, N measured images, R resamples.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "drawn", "interval", "packed", "resampled", "unpacked"]

Floats = npt.NDArray[np.float64]

RESAMPLES = 4000


def packed(right_N: npt.NDArray[np.bool_]) -> str:
    """Return which images were classified correctly as a text, eight images a byte."""
    return base64.b64encode(np.packbits(right_N).tobytes()).decode()


def unpacked(texts: Sequence[str], images: int) -> Floats:
    """Return float64 [S, N], 1 where an image was classified correctly, from one text of `packed` for each seed."""
    bits = [np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))[:images] for text in texts]
    return np.stack(bits).astype(np.float64)


def resampled(right: Mapping[str, Floats], resamples: int = RESAMPLES) -> dict[str, Floats]:
    """Return means [R] of each side over images and seeds drawn with replacement. Every side gets the same draws."""
    seeds, images = next(iter(right.values())).shape
    means = {name: np.empty(resamples) for name in right}
    for draw, (images_N, seeds_S) in enumerate(drawn(seeds, images, resamples)):
        for name, right_SN in right.items():
            means[name][draw] = right_SN[seeds_S].mean(axis=0)[images_N].mean()
    return means


def drawn(seeds: int, images: int, resamples: int = RESAMPLES) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield images [N] and seeds [S] that are drawn with replacement, the same at each call."""
    rng = np.random.default_rng(0)
    for _ in range(resamples):
        yield rng.integers(0, images, images), rng.integers(0, seeds, seeds)


def interval(values_R: Floats) -> list[float]:
    """Return the central 95 %."""
    return [round(float(value), 4) for value in np.percentile(values_R, [2.5, 97.5])]
