"""MaskGIT's VQGAN written down once more from the names of its published state dicts: plain tensor operations, nothing of ours.

`without` names a quirk that is left out, to show that ids depend on it.

Shapes: B images, L sites, D values of a code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pipeline.tokenizers.published_states import RandomState, State

QUIRKS = ("shortcut of the output", "average", "swish", "groups of 32", "last norm")


def group_norm(state: State, name: str, x: Tensor, groups: int = 32) -> Tensor:
    batch, width, height, columns = x.shape
    y = x.reshape(batch, groups, -1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return y.reshape(x.shape) * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def conv(state: State, name: str, x: Tensor) -> Tensor:
    """Stride 1 and as large as what goes in, whatever the kernel."""
    weight = state[f"{name}.weight"]
    left = (weight.shape[-1] - 1) // 2
    right = weight.shape[-1] - 1 - left
    return F.conv2d(F.pad(x, (left, right, left, right)), weight, state.get(f"{name}.bias"))


def block(state: State, name: str, x: Tensor, without: str) -> Tensor:
    activation = torch.relu if without == "swish" else lambda t: t * torch.sigmoid(t)
    groups = 8 if without == "groups of 32" else 32
    y = conv(state, f"{name}.conv1", activation(group_norm(state, f"{name}.norm1", x, groups)))
    y = conv(state, f"{name}.conv2", activation(group_norm(state, f"{name}.norm2", y, groups)))
    if f"{name}.nin_shortcut.weight" not in state:
        return y + x
    if without == "shortcut of the output":
        weight = state[f"{name}.nin_shortcut.weight"][:, : x.shape[1]]
        return y + F.conv2d(x[:, : weight.shape[1]], weight)
    return y + conv(state, f"{name}.nin_shortcut", y)


def parts(state: State, name: str) -> list[str]:
    """`name.0`, `name.1`, … as far as they go."""
    numbers = {int(key[len(name) + 1 :].split(".")[0]) for key in state if key.startswith(f"{name}.")}
    return [f"{name}.{number}" for number in sorted(numbers)]


def encode(state: State, pixels_BCHW: Tensor, without: str = "") -> Tensor:
    """Vectors [B, L, D] of pixels from 0 to 1."""
    x = conv(state, "encoder.conv_in", pixels_BCHW)
    levels = parts(state, "encoder.down")
    for level in levels:
        for name in parts(state, f"{level}.block"):
            x = block(state, name, x, without)
        if level != levels[-1]:
            batch, width, height, columns = x.shape
            cells = x.reshape(batch, width, height // 2, 2, columns // 2, 2)
            x = cells[:, :, :, 0, :, 0] if without == "average" else cells.mean((3, 5))
    for name in parts(state, "encoder.mid"):
        x = block(state, name, x, without)
    y = x if without == "last norm" else group_norm(state, "encoder.norm_out", x)
    return conv(state, "encoder.conv_out", y * torch.sigmoid(y)).flatten(2).transpose(1, 2)


def decode(state: State, vectors_BDhw: Tensor, without: str = "", prefix: str = "decoder") -> Tensor:
    """Pixels [B, 3, H, W], not clipped yet."""
    x = conv(state, f"{prefix}.conv_in", vectors_BDhw)
    for name in parts(state, f"{prefix}.mid"):
        x = block(state, name, x, without)
    for level in reversed(parts(state, f"{prefix}.up")):
        for name in parts(state, f"{level}.block"):
            x = block(state, name, x, without)
        if f"{level}.upsample_conv.weight" in state:
            x = conv(state, f"{level}.upsample_conv", x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    y = group_norm(state, f"{prefix}.norm_out", x)
    return conv(state, f"{prefix}.conv_out", y * torch.sigmoid(y))


def _add_block(made: RandomState, name: str, inputs: int, width: int) -> None:
    made.norm(f"{name}.norm1", inputs)
    made.norm(f"{name}.norm2", width)
    made.weight(f"{name}.conv1.weight", width, inputs, 3, 3, gain=1.5)
    made.weight(f"{name}.conv2.weight", width, width, 3, 3, gain=1.5)
    if inputs != width:
        made.weight(f"{name}.nin_shortcut.weight", width, width, 1, 1)


def add_decoder(made: RandomState, widths: tuple[int, ...], values: int, prefix: str = "decoder") -> None:
    made.layer(f"{prefix}.conv_in", widths[-1], values, 3, 3)
    _add_block(made, f"{prefix}.mid.0", widths[-1], widths[-1])
    inputs = widths[-1]
    for level in reversed(range(len(widths))):
        for j in range(2):
            _add_block(made, f"{prefix}.up.{level}.block.{j}", inputs, widths[level])
            inputs = widths[level]
        if level:
            made.layer(f"{prefix}.up.{level}.upsample_conv", inputs, inputs, 3, 3)
    made.norm(f"{prefix}.norm_out", widths[0])
    made.layer(f"{prefix}.conv_out", 3, widths[0], 3, 3)


def random_state(*, widths: tuple[int, ...] = (32, 32, 64), values: int = 8, seed: int = 0) -> State:
    """All tensors of the published layout but the table, at reduced width and depth."""
    made = RandomState(seed)
    made.weight("encoder.conv_in.weight", widths[0], 3, 3, 3, gain=3.0)
    inputs = widths[0]
    for level, width in enumerate(widths):
        for j in range(2):
            _add_block(made, f"encoder.down.{level}.block.{j}", inputs, width)
            inputs = width
    _add_block(made, "encoder.mid.0", widths[-1], widths[-1])
    made.norm("encoder.norm_out", widths[-1])
    made.layer("encoder.conv_out", values, widths[-1], 1, 1)
    add_decoder(made, widths, values)
    return made.tensors
