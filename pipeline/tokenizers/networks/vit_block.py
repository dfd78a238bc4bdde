"""The block of a vision transformer in published tokenizers, under one set of names; each family maps them to the names in its files.

Shapes: B images, L places, W width of the transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshards.pipeline.errors import TokenizerError

__all__ = ["Attention", "Block", "TorchAttention", "check_heads", "renamed"]

HEAD_WIDTH = 64
Bias = Literal["none", "queries and values"]


class Attention(nn.Module):
    """Self-attention with heads of 64 channels. One product makes queries, keys and values, in this order, `inner` channels each."""

    def __init__(self, width: int, *, inner: int | None = None, bias: Bias) -> None:
        super().__init__()
        inner = inner or width
        self.qkv, self.proj = nn.Linear(width, 3 * inner, bias=False), nn.Linear(inner, width)
        self._two = bias == "queries and values"
        if self._two:
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(inner)), nn.Parameter(torch.zeros(inner))

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Return a tensor of the shape of `x_BLW`."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]) if self._two else None
        qkv = functional.linear(x_BLW, self.qkv.weight, bias).reshape(*x_BLW.shape[:2], 3, -1, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*qkv)
        result: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return result


class TorchAttention(nn.MultiheadAttention):
    """torch's own attention, for networks that were published with it: on some devices its rounding differs from ours."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width // HEAD_WIDTH, batch_first=True)

    def forward(self, x_BLW: Tensor) -> Tensor:  # type: ignore[override]
        """Return a tensor of the shape of `x_BLW`."""
        result: Tensor = super().forward(x_BLW, x_BLW, x_BLW, need_weights=False)[0]
        return result


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2, self._activation = nn.Linear(width, hidden), nn.Linear(hidden, width), activation

    def forward(self, x_BLW: Tensor) -> Tensor:
        result: Tensor = self.fc2(self._activation(self.fc1(x_BLW)))
        return result


class Block(nn.Module):
    """Attention and an MLP, each with a normalisation before it and a residual connection."""

    def __init__(
        self,
        attention: nn.Module,
        width: int,
        hidden: int,
        *,
        activation: Callable[[Tensor], Tensor] = functional.gelu,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.attn, self.mlp = attention, _Mlp(width, hidden, activation)

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Return a tensor of the shape of `x_BLW`."""
        x_BLW = x_BLW + self.attn(self.norm1(x_BLW))
        result: Tensor = x_BLW + self.mlp(self.norm2(x_BLW))
        return result


def check_heads(channels: int, what: str, where: str) -> None:
    """Raise TokenizerError unless the attention channels of `what` make whole heads."""
    if channels % HEAD_WIDTH:
        raise TokenizerError(f"{where}: {what} has {channels} attention channels; expected a multiple of {HEAD_WIDTH}")


def renamed(key: str, names: Mapping[str, str], within: str) -> str:
    """Return the published name for a key of a block; keys without `within` stay as they are."""
    if within not in key:
        return key
    for own, published in names.items():
        key = key.replace(own, published)
    return key
