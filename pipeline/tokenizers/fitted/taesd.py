"""Tiny autoencoders in the layout of the TAESD family (taesd, taesdxl, taesd3, taef1, taef2): pixels from 0 to 1 to a latent grid at 1/8.

Both networks are sequences whose numbers are the keys of the published state dicts: `1.conv.0.weight` is the first convolution of the
block at place 1. A block may have a `pool`, which adds the statistics of the whole image before its convolutions.

Shapes: B images, H and W pixels, h = H / 8 and w = W / 8 sites, C channels of the latent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tokenshards.pipeline.tokenizers.networks.weights import tensor_of

__all__ = ["STRIDE", "Block", "build_decoder", "build_encoder", "plain_names"]

STRIDE = 8
WIDTH = 64
POOL_WIDTH = 4 * WIDTH
POOL_GROUPS = 4
LATENT_LIMIT = 3.0
"""The decoder squeezes a latent into -3 to 3 before it uses the latent."""


class Block(nn.Module):
    """Three convolutions with a residual connection around them."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _conv())
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, POOL_WIDTH, 1, bias=False),
                nn.GroupNorm(POOL_GROUPS, POOL_WIDTH),
                nn.ReLU(),
                nn.Conv2d(POOL_WIDTH, WIDTH, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _Squeeze(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / LATENT_LIMIT) * LATENT_LIMIT


def build_encoder(state: Mapping[str, Tensor], where: str) -> tuple[nn.Sequential, int]:
    """Return the encoder [B, 3, H, W] -> [B, C, h, w] that this state dict was saved from, without its weights, and C.

    Raises TokenizerError where the keys do not belong to such an encoder.
    """
    last = tensor_of(state, "14.weight", 4, where, "an encoder of the TAESD family at 1/8 of the side (not F32), such as taef2_encoder.pth")
    parts: list[nn.Module] = [_conv(3), _block(state, 1)]
    for stage in (2, 6, 10):
        parts += [_conv(stride=2, bias=False), *(_block(state, stage + step) for step in (1, 2, 3))]
    return nn.Sequential(*parts, _conv(out=last.shape[0])), int(last.shape[0])


def build_decoder(state: Mapping[str, Tensor], where: str) -> tuple[nn.Sequential, int]:
    """Return the decoder [B, C, h, w] -> [B, 3, H, W] and C; raises as `build_encoder`. Its pixels, from 0 to 1, still have to be
    clipped."""
    first = tensor_of(state, "1.weight", 4, where, "a decoder of the TAESD family at 1/8 of the side (not F32), such as taef2_decoder.pth")
    parts: list[nn.Module] = [_Squeeze(), _conv(first.shape[1]), nn.ReLU()]
    for stage in (3, 8, 13):
        parts += [*(_block(state, stage + step) for step in (0, 1, 2)), nn.Upsample(scale_factor=2), _conv(bias=False)]
    return nn.Sequential(*parts, _block(state, 18), _conv(out=3)), int(first.shape[1])


def plain_names(state: Mapping[str, Tensor], part: str) -> Mapping[str, Tensor]:
    """Return the `encoder` or `decoder` of a state dict of diffusers' AutoencoderTiny under TAESD's names. Other state dicts stay as they
    are.

    AutoencoderTiny holds both networks. Its decoder does not count the squeeze at the start of TAESD's decoder.
    """
    prefix, shift = f"{part}.layers.", 1 if part == "decoder" else 0
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        return state
    places = {key: key.partition(".") for key in found}
    return {f"{int(place) + shift if place.isdecimal() else place}.{rest}": found[key] for key, (place, _, rest) in places.items()}


def _block(state: Mapping[str, Tensor], place: int) -> Block:
    return Block(pooled=f"{place}.pool.0.weight" in state)


def _conv(inputs: int = WIDTH, *, out: int = WIDTH, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, out, 3, stride=stride, padding=1, bias=bias)
