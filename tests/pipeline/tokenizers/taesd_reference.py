"""The TAESD family written down once more, from the names of its published state dicts alone: plain tensor operations, nothing of ours.

Shapes: B images, H and W pixels, h = H / 8 and w = W / 8, C channels of the latent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)


def block(state: State, name: str, x: Tensor) -> Tensor:
    if f"{name}.pool.0.weight" in state:
        wide = conv(state, f"{name}.pool.0", x)
        wide = F.group_norm(wide, 4, state[f"{name}.pool.1.weight"], state[f"{name}.pool.1.bias"])
        x = x + conv(state, f"{name}.pool.3", F.relu(wide))
    y = F.relu(conv(state, f"{name}.conv.0", x))
    y = F.relu(conv(state, f"{name}.conv.2", y))
    return F.relu(conv(state, f"{name}.conv.4", y) + x)


def encode(state: State, pixels_BCHW: Tensor) -> Tensor:
    """Latents [B, C, h, w] of pixels from 0 to 1."""
    x = block(state, "1", conv(state, "0", pixels_BCHW))
    for stage in (2, 6, 10):
        x = conv(state, str(stage), x, stride=2)
        for place in (stage + 1, stage + 2, stage + 3):
            x = block(state, str(place), x)
    return conv(state, "14", x)


def decode(state: State, latents_BChw: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] from 0 to 1, not clipped yet."""
    x = F.relu(conv(state, "1", torch.tanh(latents_BChw / 3) * 3))
    for stage in (3, 8, 13):
        for place in (stage, stage + 1, stage + 2):
            x = block(state, str(place), x)
        x = conv(state, str(stage + 4), F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return conv(state, "19", block(state, "18", x))


def random_state(part: str, *, channels: int = 4, pooled: bool = True, seed: int = 0) -> State:
    """A state dict of the published layout with random weights that keep the scale of what goes through."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int, gain: float = 1.0) -> Tensor:
        fan_in = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 64
        return torch.randn(shape, generator=generator) * gain * (2 / fan_in) ** 0.5

    state: State = {}

    def add_conv(name: str, inputs: int, outputs: int, *, bias: bool = True, side: int = 3) -> None:
        state[f"{name}.weight"] = tensor(outputs, inputs, side, side)
        if bias:
            state[f"{name}.bias"] = tensor(outputs)

    def add_block(place: int, *, pool: bool) -> None:
        for step in (0, 2, 4):
            add_conv(f"{place}.conv.{step}", 64, 64)
        if pool:
            add_conv(f"{place}.pool.0", 64, 256, bias=False, side=1)
            state[f"{place}.pool.1.weight"], state[f"{place}.pool.1.bias"] = 1 + tensor(256), tensor(256)
            add_conv(f"{place}.pool.3", 256, 64, bias=False, side=1)

    if part == "encoder":
        add_conv("0", 3, 64)
        add_block(1, pool=False)
        for stage in (2, 6, 10):
            add_conv(str(stage), 64, 64, bias=False)
            for step in (1, 2, 3):
                add_block(stage + step, pool=pooled and stage == 10)
        add_conv("14", 64, channels)
        return state
    add_conv("1", channels, 64)
    for stage in (3, 8, 13):
        for step in (0, 1, 2):
            add_block(stage + step, pool=pooled and stage == 3)
        add_conv(str(stage + 4), 64, 64, bias=False)
    add_block(18, pool=False)
    add_conv("19", 64, 3)
    return state
