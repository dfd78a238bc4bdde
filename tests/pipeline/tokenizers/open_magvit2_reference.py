"""Open-MAGVIT2 written down once more from the names of its published state dicts: plain tensor operations, nothing of ours.

`without` names a quirk that is left out, to show that ids or pixels depend on it.

Shapes: B images, L sites, D signs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pipeline.tokenizers.maskgit_reference import conv, group_norm, parts
from tests.pipeline.tokenizers.published_states import RandomState, State

QUIRKS = ("padding on all sides", "shortcut of the input", "swish", "last norm")
DECODER_QUIRKS = ("channels of one pixel together", "spread of the signs", "unbiased spread", "mean of the signs", "plain norm before")


def block(state: State, name: str, x: Tensor, without: str) -> Tensor:
    activation = torch.relu if without == "swish" else F.silu
    y = conv(state, f"{name}.conv1", activation(group_norm(state, f"{name}.norm1", x)))
    y = conv(state, f"{name}.conv2", activation(group_norm(state, f"{name}.norm2", y)))
    if f"{name}.nin_shortcut.weight" in state:
        x = torch.zeros_like(y) if without == "shortcut of the input" else conv(state, f"{name}.nin_shortcut", x)
    return x + y


def encode(state: State, pixels_BCHW: Tensor, without: str = "") -> Tensor:
    """Numbers [B, L, D] of pixels from -1 to 1, whose signs are the code."""
    x = conv(state, "encoder.conv_in", pixels_BCHW)
    for level in parts(state, "encoder.down"):
        for name in parts(state, f"{level}.block"):
            x = block(state, name, x, without)
        if f"{level}.downsample.weight" in state:
            around = (0, 1, 0, 1) if without == "padding on all sides" else (1, 1, 1, 1)
            x = F.conv2d(F.pad(x, around), state[f"{level}.downsample.weight"], state[f"{level}.downsample.bias"], stride=2)
    for name in parts(state, "encoder.mid_block"):
        x = block(state, name, x, without)
    x = x if without == "last norm" else group_norm(state, "encoder.norm_out", x)
    return conv(state, "encoder.conv_out", F.silu(x)).flatten(2).transpose(1, 2)


def published_ids(numbers_BLD: Tensor) -> Tensor:
    """One number a site: the sign of channel 0 is the lowest bit."""
    return sum((numbers_BLD[..., channel] > 0).long() * 2**channel for channel in range(numbers_BLD.shape[-1]))  # type: ignore[return-value]


def decode(state: State, signs_BDhw: Tensor, without: str = "") -> Tensor:
    """Pixels [B, 3, H, W] from -1 to 1, not clipped yet."""
    flat = signs_BDhw.flatten(2)
    spread = (flat.var(dim=-1, unbiased=without != "unbiased spread") + 1e-6).sqrt()
    mean = flat.mean(dim=-1)
    x = conv(state, "decoder.conv_in", signs_BDhw)
    for name in parts(state, "decoder.mid_block"):
        x = block(state, name, x, without)
    for level in reversed(parts(state, "decoder.up")):
        name = f"decoder.adaptive.{level.split('.')[-1]}"
        scale = spread @ state[f"{name}.gamma.weight"].T + state[f"{name}.gamma.bias"]
        shift = mean @ state[f"{name}.beta.weight"].T + state[f"{name}.beta.bias"]
        scale = torch.ones_like(scale) if without == "spread of the signs" else scale
        shift = torch.zeros_like(shift) if without == "mean of the signs" else shift
        plain = x if without == "plain norm before" else F.group_norm(x, 32, eps=1e-6)
        x = scale[..., None, None] * plain + shift[..., None, None]
        for part in parts(state, f"{level}.block"):
            x = block(state, part, x, without)
        if f"{level}.upsample.conv1.weight" in state:
            y = conv(state, f"{level}.upsample.conv1", x)
            if without == "channels of one pixel together":
                x = F.pixel_shuffle(y, 2)
            else:
                batch, width, height, columns = x.shape
                x = torch.zeros(batch, width, 2 * height, 2 * columns)
                for place in range(4):
                    x[:, :, place // 2 :: 2, place % 2 :: 2] = y[:, place * width : (place + 1) * width]
    return conv(state, "decoder.conv_out", F.silu(group_norm(state, "decoder.norm_out", x)))


def random_state(*, signs: int = 18, widths: tuple[int, ...] = (32, 32, 64), seed: int = 0) -> State:
    """All tensors of the published layout at reduced width and depth."""
    made = RandomState(seed)

    def add_block(name: str, inputs: int, width: int) -> None:
        made.norm(f"{name}.norm1", inputs)
        made.norm(f"{name}.norm2", width)
        made.weight(f"{name}.conv1.weight", width, inputs, 3, 3, gain=1.5)
        made.weight(f"{name}.conv2.weight", width, width, 3, 3, gain=1.5)
        if inputs != width:
            made.weight(f"{name}.nin_shortcut.weight", width, inputs, 1, 1, gain=1.5)

    made.weight("encoder.conv_in.weight", widths[0], 3, 3, 3, gain=3.0)
    inputs = widths[0]
    for level, width in enumerate(widths):
        for j in range(2):
            add_block(f"encoder.down.{level}.block.{j}", inputs, width)
            inputs = width
        if level < len(widths) - 1:
            made.layer(f"encoder.down.{level}.downsample", width, width, 3, 3, gain=1.5)
    add_block("encoder.mid_block.0", inputs, inputs)
    made.norm("encoder.norm_out", inputs)
    made.layer("encoder.conv_out", signs, inputs, 1, 1, gain=2.0)
    made.layer("decoder.conv_in", inputs, signs, 3, 3)
    add_block("decoder.mid_block.0", inputs, inputs)
    for level in reversed(range(len(widths))):
        for part in ("gamma", "beta"):
            made.layer(f"decoder.adaptive.{level}.{part}", inputs, signs, gain=2.0)
        for j in range(2):
            add_block(f"decoder.up.{level}.block.{j}", inputs, widths[level])
            inputs = widths[level]
        if level:
            made.layer(f"decoder.up.{level}.upsample.conv1", 4 * inputs, inputs, 3, 3)
    made.norm("decoder.norm_out", inputs)
    made.layer("decoder.conv_out", 3, inputs, 3, 3, gain=2.0)
    return made.tensors
