"""Rows drawn from every image of a stream, in bounded memory: the same rows for the same images in any order.

Shapes: m rows kept of an image, L rows of an image, D values of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.canonical import keyed_hash64

__all__ = ["RowSample"]


class RowSample:
    """Keeps as many rows of each image as `max_rows` allows for all images."""

    def __init__(self, max_rows: int, seed: int) -> None:
        self._max_rows, self._seed = max_rows, seed
        self._drawn: dict[str, npt.NDArray[Any]] = {}

    def add(self, sha256: str, rows_LD: npt.NDArray[Any]) -> None:
        """Add the rows of an image. An image with a known content hash replaces the older one, which is the same image."""
        order_L = np.random.default_rng(keyed_hash64(str(self._seed), sha256)).permutation(len(rows_LD))
        self._drawn[sha256] = rows_LD[order_L[: self._share(len(self._drawn) + 1)]]
        if len(self._drawn).bit_count() == 1:  # at 1, 2, 4, 8, … images: memory stays within twice max_rows
            self._trim()

    def rows(self) -> dict[str, npt.NDArray[Any]]:
        """Return the rows [m, D] of each image by content hash, in the order of first appearance."""
        self._trim()
        return dict(self._drawn)

    def _share(self, images: int) -> int:
        return max(1, self._max_rows // images)

    def _trim(self) -> None:
        share = self._share(len(self._drawn) or 1)
        for sha256, rows_mD in self._drawn.items():
            if len(rows_mD) > share:
                self._drawn[sha256] = rows_mD[:share].copy()
