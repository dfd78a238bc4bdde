"""The blocks of our vision transformers, with timm's parameter names.

Shapes: B samples, A heads, N tokens of the transformer, E its width, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.stem_adaptors.models.drop_path import DropPath
from tokenshards.stem_adaptors.precision import in_float32

__all__ = ["LAYER_NORM_EPS", "Attention", "Block", "Mlp", "first_shares"]

LAYER_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNE: Tensor, keys_B11N: Tensor | None) -> Tensor:
        """Return [B, N, E]; `keys_B11N` is True where a token may be attended to."""
        return self._attended(*self._qkv(x_BNE), keys_B11N)

    def with_shares(self, x_BNE: Tensor, shares_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B, N, E], and the mean over heads of attention times `shares_BN`: float32 without gradient, also under autocast."""
        q, k, v = self._qkv(x_BNE)
        with torch.no_grad(), in_float32(x_BNE.device):
            # The fused attention below keeps its weights for itself. These are computed again: heads x N x N numbers a sample, for one
            # block at a time.
            scores_BANN = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5
            mean_BNN = scores_BANN.softmax(dim=-1).mean(dim=1)
            aligned_BN = (mean_BNN @ shares_BN[..., None])[..., 0]
        return self._attended(q, k, v, None), aligned_BN

    def _qkv(self, x_BNE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [B, A, N, D]."""
        batch, count, width = x_BNE.shape
        q, k, v = self.qkv(x_BNE).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, keys_B11N: Tensor | None) -> Tensor:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keys_B11N)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP; `drop_path` is the share of samples that skip each of the two (stochastic depth)."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x_BNE: Tensor, keys_B11N: Tensor | None) -> Tensor:
        """Return [B, N, E]."""
        return self._joined(x_BNE, self.attn(self.norm1(x_BNE), keys_B11N))

    def with_shares(self, x_BNE: Tensor, shares_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B, N, E], and the shares [B, N] of CutMix's partner in each token after the block.

        (A s + s) / 2, where A is the attention, averaged over heads, and s alone is the residual path (Token-Label Alignment, Xiao et al.
        2023). The MLP mixes no tokens. Stochastic depth has no part in it.
        """
        attended_BNE, aligned_BN = self.attn.with_shares(self.norm1(x_BNE), shares_BN)
        return self._joined(x_BNE, attended_BNE), (aligned_BN + shares_BN) / 2

    def _joined(self, x_BNE: Tensor, attended_BNE: Tensor) -> Tensor:
        x_BNE = x_BNE + self.drop_path1(attended_BNE)
        out: Tensor = x_BNE + self.drop_path2(self.mlp(self.norm2(x_BNE)))
        return out


def first_shares(replaced: Tensor, step: Sequence[int]) -> Tensor:
    """Return float32 [B, 1 + N], class token first: the shares of CutMix's partner before the first block.

    `replaced` [B, *sites] is True at the sites that come from the partner. A token of `step` sites has the share of its own sites, without
    the overlap and without padding; the class token has the share of all sites (Token-Label Alignment, Xiao et al. 2023).
    """
    share = replaced.float()
    for axis, side in enumerate(step, start=1):
        # The mean over boxes is the mean along one axis after the other. The last token of an axis may have fewer sites.
        rows = share.movedim(axis, -1).flatten(0, -2)
        means = F.avg_pool1d(rows, side, ceil_mode=True)
        share = means.view(*share.movedim(axis, -1).shape[:-1], -1).movedim(-1, axis)
    return torch.cat([replaced.float().flatten(1).mean(dim=1, keepdim=True), share.flatten(1)], dim=1)
