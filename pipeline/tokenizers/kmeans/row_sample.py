"""Rows drawn from every picture of a stream, in bounded memory: the same rows for the same pictures in any order.

Shapes: m rows kept of a picture, L rows of a picture, D values of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.canonical import keyed_hash64

__all__ = ["RowSample"]


class RowSample:
    """Keeps as many rows of each picture as `max_rows` allows for all of them."""

    def __init__(self, max_rows: int, seed: int) -> None:
        self._max_rows, self._seed = max_rows, seed
        self._drawn: dict[str, npt.NDArray[Any]] = {}

    def add(self, sha256: str, rows_LD: npt.NDArray[Any]) -> None:
        """Take some rows of a picture; one with a content hash that was there before replaces it, and is the same."""
        order_L = np.random.default_rng(keyed_hash64(str(self._seed), sha256)).permutation(len(rows_LD))
        self._drawn[sha256] = rows_LD[order_L[: self._share(len(self._drawn) + 1)]]
        if len(self._drawn).bit_count() == 1:  # at 1, 2, 4, 8, … pictures: memory stays within twice max_rows
            self._trim()

    def rows(self) -> dict[str, npt.NDArray[Any]]:
        """Return the rows [m, D] of each picture by content hash, in the order in which these came first."""
        self._trim()
        return dict(self._drawn)

    def _share(self, pictures: int) -> int:
        return max(1, self._max_rows // pictures)

    def _trim(self) -> None:
        share = self._share(len(self._drawn) or 1)
        for sha256, rows_mD in self._drawn.items():
            if len(rows_mD) > share:
                self._drawn[sha256] = rows_mD[:share].copy()
