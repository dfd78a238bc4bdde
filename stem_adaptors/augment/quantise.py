"""From embeddings back to ids: the nearest codes, level by level.

Shapes: B samples, N sites, D channels of an embedding, K codes of a level, R rows (sites of all samples), Q ids per site.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment.index_ops import id_dtype, meaningless
from tokenshards.stem_adaptors.augment.keys import all_rows
from tokenshards.stem_adaptors.augment.numbers import Numbers
from tokenshards.stem_adaptors.augment.operation import Operation
from tokenshards.stem_adaptors.augment.state import TokenState

__all__ = ["NearestCodes", "Quantise"]

CPU_SCORES = 1 << 20
"""Scores that a CPU holds at once: 4 MB, which stay in its cache."""


class NearestCodes(nn.Module):
    """The ids of the codes nearest to embeddings.

    With `concat` each level names the code nearest to its own part of the channels. Otherwise each level names the code nearest to what the
    levels before it left. The metric is cosine where the codebook says so, the largest product for `dot`, else Euclidean distance; it
    compares vectors as the codebook holds them, so embeddings that were standardised become those vectors again.
    """

    scale_D: Tensor
    mean_D: Tensor

    def __init__(self, spec: TokenizerSpec, tables: Tables, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """`statistics`: mean and standard deviation of each channel, by which the embeddings were standardised.

        Raises ConfigError without a codebook.
        """
        super().__init__()
        if spec.codebook is None:
            raise ConfigError(
                f"tokenizer family {spec.family!r} has no codebook, so embeddings have no nearest ids; leave out operations on embeddings"
            )
        self.concat, self.metric, self._dtype = spec.layout.combine == "concat", spec.codebook.metric, id_dtype(spec)
        self.levels = spec.layout.ids_per_site
        for level in range(self.levels):
            table_KD = torch.from_numpy(np.array(tables[f"level_{level}"], np.float32))
            compared_KD = F.normalize(table_KD, dim=1) if self.metric == "cosine" else table_KD
            offset_K = torch.zeros(len(table_KD)) if self.metric == "dot" else compared_KD.square().sum(1) / 2
            for name, tensor in (("code", table_KD), ("compared", compared_KD), ("offset", offset_K)):
                self.register_buffer(f"{name}_{level}", tensor, persistent=False)
        width = sum(spec.codebook.dims) if self.concat else spec.codebook.dims[0]
        mean_D, std_D = (np.zeros(width), np.ones(width)) if statistics is None else statistics
        # A channel without variance is not divided by its standard deviation, as in `TokenEmbedding`.
        std_D = np.where(std_D > 1e-6 * std_D.max(), std_D, 1.0)
        self.register_buffer("mean_D", torch.from_numpy(np.array(mean_D, np.float32)), persistent=False)
        self.register_buffer("scale_D", torch.from_numpy(np.array(std_D, np.float32)), persistent=False)

    @torch.no_grad()
    def forward(self, x_BND: Tensor) -> Tensor:
        """Return ids [B, N, Q]."""
        x_RD = x_BND.reshape(-1, x_BND.shape[-1]).float() * self.scale_D + self.mean_D
        if all_rows(x_RD.device):
            return self._nearest(x_RD).view(*x_BND.shape[:2], self.levels)
        rows = max(1, CPU_SCORES // max(len(self._part("code", level)) for level in range(self.levels)))
        return torch.cat([self._nearest(piece_RD) for piece_RD in torch.split(x_RD, rows)]).view(*x_BND.shape[:2], self.levels)

    def _nearest(self, x_RD: Tensor) -> Tensor:
        found, start = [], 0
        for level in range(self.levels):
            code_KD = self._part("code", level)
            own_RD = x_RD[:, start : start + code_KD.shape[1]] if self.concat else x_RD
            compared_RD = F.normalize(own_RD, dim=1) if self.metric == "cosine" else own_RD
            scores_RK = torch.addmm(self._part("offset", level), compared_RD, self._part("compared", level).T, beta=-1)
            ids_R = best_columns(scores_RK)
            found.append(ids_R)
            if self.concat:
                start += code_KD.shape[1]
            elif level + 1 < self.levels:
                x_RD = x_RD - code_KD[ids_R]
        return torch.stack(found, dim=1).to(self._dtype)

    def _part(self, name: str, level: int) -> Tensor:
        return cast(Tensor, getattr(self, f"{name}_{level}"))


def best_columns(scores_RK: Tensor) -> Tensor:
    """Return the column [R] of the largest score of each row, the first of equal ones."""
    if all_rows(scores_RK.device):
        return scores_RK.argmax(1)
    return torch.from_numpy(scores_RK.numpy().argmax(1))  # on a CPU eight times as fast as torch's


class Quantise(Operation):
    """Replaces embeddings by the nearest code vectors, and the ids by theirs: what a crop interpolated becomes tokens again."""

    name, gives_ids = "quantise", True

    def prepare(self, spec: TokenizerSpec, tables: Tables, grid: tuple[int, ...]) -> None:
        """Keep the codebook. Raises ConfigError where there is none."""
        self.nearest = NearestCodes(spec, tables, self.statistics)

    def refusal(self, layout: Layout) -> str | None:
        """Padded sites have no code."""
        return meaningless(layout, not layout.variable, "quantise")

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Quantise all samples."""
        x = state.embeddings
        return state.with_ids(self.nearest(x.flatten(2).transpose(1, 2)), tuple(x.shape[2:]))
