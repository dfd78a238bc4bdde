"""The nearest row of a table on any device, in float32, in blocks: no table of all distances is ever kept.

Shapes: N rows, K codes, D values of a row; B images, L sites, Q levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Metric", "NearestCode", "residual_ids"]

Metric = Literal["l2", "cosine", "dot"]

BLOCK_SCORES = 1 << 22
"""Scores held at once: 16 MB, which stay in the cache of a CPU's socket."""


class NearestCode:
    """Finds the nearest row of a table [K, D]: one matrix product and one argmin for each block of rows; the lowest id wins a tie.

    Nearest is the smallest squared distance (`l2`), the same between rows of length 1 (`cosine`), or the largest product (`dot`).
    """

    def __init__(self, table_KD: npt.NDArray[np.float32], metric: Metric = "l2") -> None:
        table = torch.from_numpy(table_KD)
        self._normalises = metric == "cosine"
        self._table_KD = functional.normalize(table, dim=1) if self._normalises else table
        self._offsets_K = table.new_zeros(len(table)) if metric == "dot" else self._table_KD.square().sum(dim=1)

    def __call__(self, rows_ND: Tensor) -> Tensor:
        """Return the ids [N] of float32 rows, on their device."""
        self._table_KD, self._offsets_K = self._table_KD.to(rows_ND.device), self._offsets_K.to(rows_ND.device)
        blocks = torch.split(rows_ND, max(1, BLOCK_SCORES // len(self._table_KD)))
        return torch.cat([self._nearest(functional.normalize(block, dim=1) if self._normalises else block) for block in blocks])

    def rows(self, ids_N: Tensor) -> Tensor:
        """Return the rows [N, D] of ids, on their device; of length 1 for `cosine`."""
        self._table_KD = self._table_KD.to(ids_N.device)
        return self._table_KD[ids_N]

    def _nearest(self, rows_ND: Tensor) -> Tensor:
        return torch.addmm(self._offsets_K, rows_ND, self._table_KD.T, alpha=-2).argmin(dim=1)


def residual_ids(levels: Sequence[NearestCode], vectors_BLD: Tensor) -> Tensor:
    """Return ids [B, L, Q] of float32 vectors, on their device: each level names the row nearest to what those before it left."""
    rest_ND, ids = vectors_BLD.flatten(0, 1), []
    for level in levels:
        ids.append(level(rest_ND))
        rest_ND = rest_ND - level.rows(ids[-1])
    return torch.stack(ids, dim=1).reshape(*vectors_BLD.shape[:2], len(ids))
