"""ViT-VQGAN written down once more from the names of its published state dicts: plain tensor operations, nothing of ours.

`without` names a quirk that is left out, to show that ids depend on it.

Shapes: B images, L sites, E channels, D values of a code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pipeline.tokenizers.published_states import RandomState, State

PATCH = 8
QUIRKS = ("tanh", "order of q, k and v", "heads outside", "norm before", "last norm", "positions of the checkpoint", "rows first")


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def attention(state: State, name: str, x: Tensor, without: str) -> Tensor:
    batch, sites, _ = x.shape
    q, k, v = linear(state, f"{name}.to_qkv", x).chunk(3, dim=-1)
    if without == "order of q, k and v":
        q, k, v = v, q, k
    heads = q.shape[-1] // 64

    def split(t: Tensor) -> Tensor:
        if without == "heads outside":
            return t.reshape(batch, sites, 64, heads).permute(0, 3, 1, 2)
        return t.reshape(batch, sites, heads, 64).permute(0, 2, 1, 3)

    weights = torch.softmax(split(q) @ split(k).transpose(-1, -2) * 64**-0.5, dim=-1)
    mixed = (weights @ split(v)).permute(0, 2, 1, 3).reshape(batch, sites, heads * 64)
    return linear(state, f"{name}.to_out", mixed)


def transformer(state: State, name: str, x: Tensor, without: str) -> Tensor:
    depth = len({key.split(".")[3] for key in state if key.startswith(f"{name}.layers.")})
    activation = F.gelu if without == "tanh" else torch.tanh
    for layer in range(depth):
        first, second = f"{name}.layers.{layer}.0", f"{name}.layers.{layer}.1"
        if without == "norm before":
            x = norm(state, f"{first}.norm", x + attention(state, f"{first}.fn", x, without))
            x = norm(state, f"{second}.norm", x + linear(state, f"{second}.fn.net.2", activation(linear(state, f"{second}.fn.net.0", x))))
            continue
        x = x + attention(state, f"{first}.fn", norm(state, f"{first}.norm", x), without)
        y = norm(state, f"{second}.norm", x)
        x = x + linear(state, f"{second}.fn.net.2", activation(linear(state, f"{second}.fn.net.0", y)))
    return x if without == "last norm" else norm(state, f"{name}.norm", x)


def sin_cos(sites: int, width: int) -> Tensor:
    """The table that training began with, and that a port might compute anew."""
    side = int(sites**0.5)
    omega = 10000 ** -(torch.arange(width // 4) / (width / 4))
    column = (torch.arange(sites) % side)[:, None] * omega
    row = (torch.arange(sites) // side)[:, None] * omega
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)[None]


def encode(state: State, pixels_BCHW: Tensor, without: str = "") -> Tensor:
    """Vectors [B, L, D] of pixels from 0 to 1, before the search."""
    weight = state["encoder.to_patch_embedding.0.weight"]
    patches = F.unfold(pixels_BCHW, PATCH, stride=PATCH).transpose(1, 2)
    x = patches @ weight.flatten(1).T + state["encoder.to_patch_embedding.0.bias"]
    if without == "rows first":
        side = int(x.shape[1] ** 0.5)
        x = x.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
    positions = state["encoder.en_pos_embedding"]
    x = x + (sin_cos(x.shape[1], x.shape[2]) if without == "positions of the checkpoint" else positions)
    return linear(state, "pre_quant", transformer(state, "encoder.transformer", x, without))


def decode(state: State, rows_BLD: Tensor, without: str = "") -> Tensor:
    """Pixels [B, 3, H, W], not clipped yet, of raw rows of the table."""
    x = linear(state, "post_quant", rows_BLD if without == "rows of length 1" else F.normalize(rows_BLD, dim=-1))
    x = transformer(state, "decoder.transformer", x + state["decoder.de_pos_embedding"], without)
    batch, sites, _ = x.shape
    side = int(sites**0.5)
    weight, bias = state["decoder.to_pixel.1.weight"], state["decoder.to_pixel.1.bias"]
    patches = (x @ weight.flatten(1)).reshape(batch, side, side, 3, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, side * PATCH, side * PATCH) + bias[:, None, None]


def random_state(*, width: int = 48, heads: int = 2, depth: int = 2, side: int = 4, values: int = 8, seed: int = 0) -> State:
    """All tensors of the published layout but the table, at reduced width."""
    made = RandomState(seed)
    made.layer("encoder.to_patch_embedding.0", width, 3, PATCH, PATCH, gain=3.0)
    for part, position in (("encoder", "en"), ("decoder", "de")):
        made.tensors[f"{part}.{position}_pos_embedding"] = made.normal(1, side * side, width)
        for layer in range(depth):
            name = f"{part}.transformer.layers.{layer}"
            made.norm(f"{name}.0.norm", width)
            made.norm(f"{name}.1.norm", width)
            made.layer(f"{name}.0.fn.to_qkv", 3 * heads * 64, width, gain=1.5, bias=False)
            made.layer(f"{name}.0.fn.to_out", width, heads * 64)
            made.layer(f"{name}.1.fn.net.0", 4 * width, width)
            made.layer(f"{name}.1.fn.net.2", width, 4 * width, gain=2.0)
        made.norm(f"{part}.transformer.norm", width)
    made.layer("pre_quant", values, width)
    made.layer("post_quant", width, values)
    made.weight("decoder.to_pixel.1.weight", width, 3, PATCH, PATCH, gain=1.0)
    made.bias("decoder.to_pixel.1.bias", 3)
    return made.tensors
