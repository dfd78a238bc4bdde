"""The nearest row of a table, in float32, in blocks: the table of all distances is never kept. For numpy rows and for torch tensors.

Both searches find the smallest |c|² - 2 x·c by one matrix product and one argmin for each block; the lowest id wins a tie. numpy rows end
in a column of ones, which multiplies |c|²: fitting and the default tokenizer thus need no second pass and no torch. The first tensor
imports torch.

Shapes: N rows, K codes, D values of a row; B images, L sites, Q levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.activity import step

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BLOCK_ROWS", "Metric", "NearestCode", "block_rows", "nearest_rows", "residual_ids"]

Floats = npt.NDArray[np.float32]
Metric = Literal["l2", "cosine", "dot"]

BLOCK_ROWS = 2048
"""numpy rows searched at once: their scores against 256 codes fill 2 MB and stay in the cache."""
CPU_SCORES = 1 << 22
"""Scores of tensors held at once on a CPU: 16 MB, which stay in the cache of its socket."""
GPU_SCORES = 1 << 27
"""Scores on a GPU, where small blocks waste time: 512 MB. The search halves this while memory is short."""


class NearestCode:
    """Finds the nearest row of a table [K, D]: smallest squared distance (`l2`), smallest squared distance between rows scaled to length 1
    (`cosine`), or largest product (`dot`). numpy rows are compared by `l2` alone.
    """

    def __init__(self, table_KD: Floats, metric: Metric = "l2") -> None:
        self._raw_KD, self._metric = table_KD, metric
        self._gpu_scores = GPU_SCORES

    @cached_property
    def padded_rows(self) -> Floats:
        """The table with a last column of zeros, so that subtracting rows keeps the ones of numpy values."""
        return np.pad(self._raw_KD, ((0, 0), (0, 1)))

    @cached_property
    def _weights(self) -> Floats:
        if self._metric != "l2":
            raise ValueError(f"numpy rows are compared by l2; this table has the metric {self._metric}")
        table_KD = self._raw_KD
        return np.ascontiguousarray(np.vstack([-2 * table_KD.T, np.einsum("kd,kd->k", table_KD, table_KD)]))

    def scores(self, values: Floats, out: Floats | None = None) -> Floats:
        """Return [N, K]: for values [N, D + 1] and each row, the squared distance minus the squared norm of the value."""
        return np.matmul(values, self._weights, out=out)

    def nearest(self, values: Floats, scores: Floats | None = None) -> npt.NDArray[np.intp]:
        """Return the ids [N] for values [N, D + 1]. `scores` [N, K] is memory for the scores."""
        nearest_N: npt.NDArray[np.intp] = self.scores(values, scores).argmin(axis=1)
        return nearest_N

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        """The table in the form that is compared, and the numbers that are added to the products."""
        import torch
        from torch.nn import functional

        table = torch.from_numpy(self._raw_KD)
        table_KD = functional.normalize(table, dim=1) if self._metric == "cosine" else table
        return table_KD, table.new_zeros(len(table)) if self._metric == "dot" else table_KD.square().sum(dim=1)

    def __call__(self, rows_ND: Tensor) -> Tensor:
        """Return the ids [N] of a float32 tensor, on its device."""
        import torch

        table_KD, offsets_K = self._tensors = tuple(part.to(rows_ND.device) for part in self._tensors)  # type: ignore[assignment]
        gpu = rows_ND.device.type == "cuda"
        while True:
            try:
                found = []
                for block_ND in torch.split(rows_ND, block_rows(len(table_KD), self._gpu_scores if gpu else CPU_SCORES)):
                    found.append(self._nearest(block_ND, table_KD, offsets_K))
                    step()  # a search in a large table takes longer than the networks before it, and shows that it works
                return torch.cat(found)
            except torch.OutOfMemoryError:
                if not gpu or self._gpu_scores <= CPU_SCORES:
                    raise
                self._gpu_scores //= 2
                torch.cuda.empty_cache()  # free pieces of the larger block would leave no room for the smaller one

    def _nearest(self, rows_ND: Tensor, table_KD: Tensor, offsets_K: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        rows_ND = functional.normalize(rows_ND, dim=1) if self._metric == "cosine" else rows_ND
        return torch.addmm(offsets_K, rows_ND, table_KD.T, alpha=-2).argmin(dim=1)

    def rows(self, ids_N: Tensor) -> Tensor:
        """Return the rows [N, D] of ids, on their device; of length 1 for `cosine`."""
        self._tensors = tuple(part.to(ids_N.device) for part in self._tensors)  # type: ignore[assignment]
        return self._tensors[0][ids_N]


def block_rows(codes: int, scores: int = CPU_SCORES) -> int:
    """Return how many rows are searched at once in a table of `codes` codes, where memory may hold `scores` scores."""
    return max(1, scores // codes)


def nearest_rows(points_ND: Floats, table_KD: Floats) -> npt.NDArray[np.intp]:
    """Return the id of the nearest row of the table for each point, block by block."""
    search = NearestCode(table_KD)
    values = np.pad(points_ND, ((0, 0), (0, 1)), constant_values=1)
    return np.concatenate([search.nearest(values[start : start + BLOCK_ROWS]) for start in range(0, len(values), BLOCK_ROWS)])


def residual_ids(levels: Sequence[NearestCode], vectors_BLD: Tensor) -> Tensor:
    """Return ids [B, L, Q] of float32 vectors, on their device. Each level names the row nearest to what the levels before it left."""
    import torch

    rest_ND, ids = vectors_BLD.flatten(0, 1), []
    for level in levels:
        ids.append(level(rest_ND))
        rest_ND = rest_ND - level.rows(ids[-1])
    return torch.stack(ids, dim=1).reshape(*vectors_BLD.shape[:2], len(ids))
