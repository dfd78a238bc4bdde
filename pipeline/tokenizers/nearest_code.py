"""The nearest row of a table on any device, in float32, in blocks: no table of all distances is ever kept.

Shapes: N rows, K codes, D values of a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["NearestCode"]

BLOCK_SCORES = 1 << 22
"""Scores held at once: 16 MB, which stay in the cache of a CPU's socket."""


class NearestCode:
    """Finds the nearest row of a table [K, D] by squared distance: one matrix product and one argmin for each block of rows."""

    def __init__(self, table_KD: npt.NDArray[np.float32]) -> None:
        self._table_KD = torch.from_numpy(table_KD)
        self._squares_K = self._table_KD.square().sum(dim=1)

    def __call__(self, rows_ND: Tensor) -> Tensor:
        """Return the ids [N] of float32 rows, on their device."""
        table_KD, squares_K = self._table_KD.to(rows_ND.device), self._squares_K.to(rows_ND.device)
        blocks = torch.split(rows_ND, max(1, BLOCK_SCORES // len(table_KD)))
        return torch.cat([torch.addmm(squares_K, block, table_KD.T, alpha=-2).argmin(dim=1) for block in blocks])

    def rows(self, ids_N: Tensor) -> Tensor:
        """Return the rows [N, D] of ids, on their device."""
        return self._table_KD.to(ids_N.device)[ids_N]
