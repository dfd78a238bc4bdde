"""The two networks of TokenAdapt (SeiT++, Lee et al. 2024): from codes to cells in which images can be moved, and back to ids.

Conversion: code vector -> width, positions, one transformer block, norm, transposed 2 x 2 convolution to twice the sites along each axis.
Reverse: 2 x 2 convolution, positions, one block, norm, one linear head for each level of ids. The head of a residual level also sees the
code vectors of the levels before it, because its ids mean a correction of them; with one level this is the paper's network. Beside the
transformers there may be two shorter ways, which the paper's networks have not: code vectors moved and compared with the codebook (`skip`),
and what the nearest id alone says (`tables`).

Shapes: B samples, H x W grid, h x w grid of the result, L = H * W and N = h * w sites, Q ids per site, D channels of a code vector,
E width, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.augment.adapt_maps import nearest_sites, sampled, window_maps
from tokenshards.stem_adaptors.augment.adapt_sizes import HEAD_WIDTH, AdaptSizes

__all__ = ["TokenAdapter", "sin_cos_positions"]

MOST_TABLE_CODES = 1024
"""Codes of a level up to which its table is kept: it has twice their square of numbers."""


def sin_cos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return float32 [H * W, E], fixed: the first half from the column, the second from the row; each half sines, then cosines.

    Frequency k is 10000^(-k / (E / 4)), as in ViT-VQGAN (Yu et al. 2022).
    """
    rows, columns = grid
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    halves = []
    for places in (torch.arange(columns).repeat(rows), torch.arange(rows).repeat_interleave(columns)):
        angles = places.double()[:, None] * omega
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()


class _Block(nn.Module):
    """Pre-norm attention without a bias for queries, keys and values, and an MLP with a tanh between its layers."""

    def __init__(self, sizes: AdaptSizes) -> None:
        super().__init__()
        inner = sizes.heads * HEAD_WIDTH
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.qkv, self.out = nn.Linear(sizes.width, 3 * inner, bias=False), nn.Linear(inner, sizes.width)
        self.fc1, self.fc2 = nn.Linear(sizes.width, sizes.hidden), nn.Linear(sizes.hidden, sizes.width)

    def forward(self, x_BLE: Tensor) -> Tensor:
        """Return the same shape."""
        qkv = self.qkv(self.norm1(x_BLE)).reshape(*x_BLE.shape[:2], 3, -1, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x_BLE = x_BLE + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        found: Tensor = x_BLE + self.fc2(torch.tanh(self.fc1(self.norm2(x_BLE))))
        return found


class _Conversion(nn.Module):
    positions: Tensor

    def __init__(self, channels: int, grid: tuple[int, int], sizes: AdaptSizes) -> None:
        super().__init__()
        self.enter, self.block, self.norm = nn.Linear(channels, sizes.width), _Block(sizes), nn.LayerNorm(sizes.width)
        self.leave = nn.ConvTranspose2d(sizes.width, channels, 2, 2)
        self.beside = nn.ConvTranspose2d(channels, channels, 2, 2) if sizes.skip else None
        self.register_buffer("positions", sin_cos_positions(grid, sizes.width))

    def forward(self, x_BLD: Tensor, grid: tuple[int, int]) -> Tensor:
        x_BLE = self.norm(self.block(self.enter(x_BLD) + self.positions))
        cells: Tensor = self.leave(x_BLE.transpose(1, 2).reshape(len(x_BLE), -1, *grid))
        return cells if self.beside is None else cells + self.beside(x_BLD.transpose(1, 2).reshape(len(x_BLD), -1, *grid))


class _Reverse(nn.Module):
    positions: Tensor

    def __init__(self, channels: int, vocabulary: Sequence[int], sizes: AdaptSizes) -> None:
        super().__init__()
        around = 2 * sizes.reach
        self.enter = nn.Conv2d(channels, sizes.width, 2 + 2 * around, 2, around)
        self.block, self.norm = _Block(sizes), nn.LayerNorm(sizes.width)
        read = sizes.width + channels if sizes.skip else sizes.width
        self.heads = nn.ModuleList(nn.Linear(sizes.width, size) for size in vocabulary)
        self.beside_heads = nn.ModuleList(nn.Linear(channels, size, bias=False) for size in vocabulary) if sizes.skip else None
        self.beside = nn.Conv2d(channels, sizes.features * channels, 2, 2) if sizes.skip else None
        self.map = nn.Linear(sizes.features, sizes.width, bias=False) if sizes.skip else None
        self.before = nn.Linear(channels, read, bias=False) if len(vocabulary) > 1 else None
        """What a head sees of the code vectors of the levels before it."""
        self.tables = nn.ModuleList(_table(size) for size in vocabulary) if sizes.tables else None
        self.sharpness = nn.Linear(sizes.features, len(vocabulary), bias=False) if sizes.tables else None
        if self.sharpness is not None:
            nn.init.zeros_(self.sharpness.weight)
        if self.before is not None:
            nn.init.zeros_(self.before.weight)
        self.register_buffer("positions", sin_cos_positions(sizes.out_grid, sizes.width))

    def forward(self, cells_BDHW: Tensor, features_BF: Tensor) -> Tensor:
        x_BNE = self.enter(cells_BDHW).flatten(2).transpose(1, 2) + self.positions
        if self.map is None or self.beside is None:
            plain: Tensor = self.norm(self.block(x_BNE))
            return plain
        x_BNE = self.norm(self.block(x_BNE + self.map(features_BF)[:, None]))
        # One matrix for each feature of the map, weighted by the features: a matrix of the sample's own.
        beside_BFDN = self.beside(cells_BDHW).flatten(2).unflatten(1, (features_BF.shape[1], -1))
        beside_BDN = (beside_BFDN * features_BF[:, :, None, None]).sum(1)
        return torch.cat([x_BNE, beside_BDN.transpose(1, 2)], dim=-1)


def _table(codes: int) -> nn.Module:
    """Return zeros [2 K, K] to look rows up in; nothing for a large vocabulary."""
    if codes > MOST_TABLE_CODES:
        return nn.Identity()
    table = nn.Embedding(2 * codes, codes)
    nn.init.zeros_(table.weight)
    return table


def _features(maps_B23: Tensor) -> Tensor:
    """Return [B, MAP_FEATURES] of maps."""
    turn_B4 = maps_B23[:, :, :2].flatten(1)
    scale_B1 = (turn_B4[:, :1] * turn_B4[:, 3:] - turn_B4[:, 1:2] * turn_B4[:, 2:3]).abs().clamp_min(1e-6).sqrt()
    return torch.cat([torch.ones_like(scale_B1), turn_B4 / scale_B1, scale_B1], dim=1)


class TokenAdapter(nn.Module):
    """Both networks for a tokenizer with a codebook. They read code vectors as the codebook holds them."""

    def __init__(self, spec: TokenizerSpec, tables: Tables, sizes: AdaptSizes) -> None:
        """Raises ConfigError for a tokenizer without a codebook or without a grid of one size."""
        super().__init__()
        if spec.codebook is None:
            raise ConfigError(f"TokenAdapt: tokenizer family {spec.family!r} has no codebook; expected one with code vectors")
        if spec.layout.kind != "grid" or spec.layout.variable:
            raise ConfigError(f"TokenAdapt: the layout is of kind {spec.layout.kind!r}; expected a grid of one size")
        self.grid = spec.layout.grid[0], spec.layout.grid[1]
        if sizes.out_grid[0] > self.grid[0] or sizes.out_grid[1] > self.grid[1]:
            raise ConfigError(f"TokenAdapt: the result has {sizes.out_grid} sites of a grid of {self.grid}; expected no more")
        self.sizes, self.vocabulary = sizes, spec.vocabulary
        self.metric = spec.codebook.metric
        self.concat = spec.layout.combine == "concat"
        for level in range(len(spec.vocabulary)):
            table_KD = torch.from_numpy(np.array(tables[f"level_{level}"], np.float32))
            self.register_buffer(f"code_{level}", table_KD, persistent=False)
        channels = sum(spec.codebook.dims) if self.concat else spec.codebook.dims[0]
        self.conversion = _Conversion(channels, self.grid, sizes)
        self.reverse = _Reverse(channels, spec.vocabulary, sizes)

    @property
    def heads(self) -> list[nn.Linear]:
        """The last layer of each level, behind the transformers."""
        return [head for head in self.reverse.heads if isinstance(head, nn.Linear)]

    @property
    def beside_heads(self) -> list[nn.Linear]:
        """The last layer of each level, behind the code vectors; none without the skip."""
        return [head for head in self.reverse.beside_heads or () if isinstance(head, nn.Linear)]

    def codes(self, level: int) -> Tensor:
        """Return the raw code vectors [K, D] of a level."""
        return cast(Tensor, getattr(self, f"code_{level}"))

    def vectors(self, ids_BLQ: Tensor, levels: int | None = None) -> Tensor:
        """Return float32 [B, L, D], the raw code vectors of sites: levels summed, or side by side. With `levels`, of the first ones."""
        count = len(self.vocabulary) if levels is None else levels
        parts = [F.embedding(ids_BLQ[..., level], self.codes(level)) for level in range(count)]
        if self.concat:
            x_BLD = torch.cat(parts, dim=-1)
            return F.pad(x_BLD, (0, self.reverse.enter.in_channels - x_BLD.shape[-1]))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def convert(self, ids_BLQ: Tensor) -> Tensor:
        """Return the cells [B, D, 2 H, 2 W] of whole samples."""
        cells: Tensor = self.conversion(self.vectors(ids_BLQ), self.grid)
        return cells

    def moved(self, ids_BLQ: Tensor, maps_B23: Tensor, colours_B3: Tensor | None = None) -> Tensor:
        """Return [B, N, E], with a skip [B, N, E + D], what the heads read, for maps as `adapt_maps.random_maps` draws them."""
        rows, columns = self.sizes.out_grid
        maps_B23 = window_maps(maps_B23, self.grid, self.sizes.out_grid)
        x_BNE: Tensor = self.reverse(
            sampled(self.convert(ids_BLQ), maps_B23, (2 * rows, 2 * columns)), self._features(maps_B23, colours_B3)
        )
        return x_BNE

    def forward(self, ids_BLQ: Tensor, maps_B23: Tensor, known_BNQ: Tensor, colours_B3: Tensor | None = None) -> list[Tensor]:
        """Return logits [B, N, K] of each level, given the right ids of the levels before it."""
        x_BNE, near_QBN = self.moved(ids_BLQ, maps_B23, colours_B3), self._nearest_ids(ids_BLQ, maps_B23)
        sharp_BQ = self._sharpness(maps_B23, colours_B3)
        return [self._logits(x_BNE, known_BNQ, near_QBN, sharp_BQ, level) for level in range(len(self.vocabulary))]

    def ids(self, ids_BLQ: Tensor, maps_B23: Tensor, colours_B3: Tensor | None = None) -> Tensor:
        """Return ids [B, N, Q] in the dtype of `ids_BLQ`: of each level the most probable one after those before it."""
        x_BNE, found_BNQ = self.moved(ids_BLQ, maps_B23, colours_B3), ids_BLQ.new_zeros(0)
        near_QBN, sharp_BQ = self._nearest_ids(ids_BLQ, maps_B23), self._sharpness(maps_B23, colours_B3)
        for level in range(len(self.vocabulary)):
            own_BN1 = self._logits(x_BNE, found_BNQ, near_QBN, sharp_BQ, level).argmax(-1, keepdim=True).to(ids_BLQ.dtype)
            found_BNQ = own_BN1 if level == 0 else torch.cat([found_BNQ, own_BN1], dim=-1)
        return found_BNQ

    def _features(self, maps_B23: Tensor, colours_B3: Tensor | None) -> Tensor:
        features_BF = _features(maps_B23)
        if not self.sizes.colour:
            return features_BF
        colours_B3 = torch.zeros_like(features_BF[:, :3]) if colours_B3 is None else colours_B3
        return torch.cat([features_BF, colours_B3], dim=1)

    def _nearest_ids(self, ids_BLQ: Tensor, maps_B23: Tensor) -> list[Tensor]:
        """Return for each level the rows of its table [B, N], from the id of the nearest site; outside of the image the last one."""
        if self.reverse.tables is None:
            return []
        window = self.sizes.out_grid
        site_BN = nearest_sites(window_maps(maps_B23, self.grid, window), self.grid, window)
        taken_BNQ = ids_BLQ.long().gather(1, site_BN.clamp_min(0)[..., None].expand(-1, -1, ids_BLQ.shape[2]))
        mirrored_B1 = (maps_B23[:, 0, 0] * maps_B23[:, 1, 1] < maps_B23[:, 0, 1] * maps_B23[:, 1, 0])[:, None]
        rows = (taken_BNQ[..., level] + codes * mirrored_B1 for level, codes in enumerate(self.vocabulary))
        return [torch.where(site_BN < 0, 2 * codes, row_BN) for row_BN, codes in zip(rows, self.vocabulary, strict=True)]

    def _sharpness(self, maps_B23: Tensor, colours_B3: Tensor | None) -> Tensor | None:
        if self.reverse.sharpness is None:
            return None
        maps_B23 = window_maps(maps_B23, self.grid, self.sizes.out_grid)
        return cast(Tensor, self.reverse.sharpness(self._features(maps_B23, colours_B3))).exp()

    def _logits(self, x_BNE: Tensor, known_BNQ: Tensor, near_QBN: list[Tensor], sharp_BQ: Tensor | None, level: int) -> Tensor:
        if level and self.reverse.before is not None:
            x_BNE = x_BNE + self.reverse.before(self.vectors(known_BNQ, level))
        head, table = self.heads[level], self.reverse.tables[level] if self.reverse.tables is not None else None
        weight_KE = torch.cat([head.weight, self.beside_heads[level].weight], dim=1) if self.sizes.skip else head.weight
        if sharp_BQ is not None:
            plain_BNE, beside_BND = x_BNE[..., : self.sizes.width], x_BNE[..., self.sizes.width :]
            x_BNE = torch.cat([plain_BNE, beside_BND * sharp_BQ[:, level, None, None]], dim=-1)
        if not isinstance(table, nn.Embedding):
            return F.linear(x_BNE, weight_KE, head.bias)
        rows_RK = F.pad(table.weight, (0, 0, 0, 1)) + head.bias  # the last row is for places outside of the image
        added_RK = F.embedding(near_QBN[level].flatten(), rows_RK)
        return torch.addmm(added_RK, x_BNE.flatten(0, 1), weight_KE.T).view(*x_BNE.shape[:2], -1)

    def load(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Take weights. Raises ConfigError naming what does not fit."""
        weights = dict(weights)
        if self.reverse.beside_heads is not None and "reverse.beside_heads.0.weight" not in weights:  # one matrix for both until 0.1.0
            for level in range(len(self.vocabulary)):
                both_KC = weights.get(f"reverse.heads.{level}.weight", torch.zeros(0, self.sizes.width))
                weights[f"reverse.heads.{level}.weight"] = both_KC[:, : self.sizes.width]
                weights[f"reverse.beside_heads.{level}.weight"] = both_KC[:, self.sizes.width :]
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            raise ConfigError(f"{where}: these weights do not fit its sizes ({str(error).splitlines()[-1].strip()})") from None
