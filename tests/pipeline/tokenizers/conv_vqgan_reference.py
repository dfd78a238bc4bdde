"""Convolutional VQGANs written down once more from the names of three published layouts: plain tensor operations, nothing of ours.

`taming` names are those of taming-transformers, latent diffusion and IBQ, `llamagen` those of LlamaGen, `diffusers` those of aMUSEd.
`without` names a quirk that is left out, to show that ids depend on it.

Shapes: B images, L sites, D values of a code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pipeline.tokenizers.maskgit_reference import conv, group_norm
from tests.pipeline.tokenizers.published_states import RandomState, State

QUIRKS = ("padding right and below", "attention of the last level", "attention in the middle", "scale of attention", "swish", "shortcut")


@dataclass(frozen=True)
class Layout:
    """How one project names the parts of level i; `up` is told the level counted from the coarsest, and how many there are."""

    down: str
    up: str
    up_from_finest: bool
    block: str
    attention: str
    mid: tuple[str, str, str]
    shortcut: str
    norm: str
    qkv: tuple[str, str, str, str]
    last_norm: str
    smaller: str
    larger: str


TAMING = Layout(
    down="down.{}",
    up="up.{}",
    up_from_finest=True,
    block="block",
    attention="attn",
    mid=("mid.block_1", "mid.attn_1", "mid.block_2"),
    shortcut="nin_shortcut",
    norm="norm",
    qkv=("q", "k", "v", "proj_out"),
    last_norm="norm_out",
    smaller="downsample.conv",
    larger="upsample.conv",
)
LLAMAGEN = Layout(
    down="conv_blocks.{}",
    up="conv_blocks.{}",
    up_from_finest=False,
    block="res",
    attention="attn",
    mid=("mid.0", "mid.1", "mid.2"),
    shortcut="nin_shortcut",
    norm="norm",
    qkv=("q", "k", "v", "proj_out"),
    last_norm="norm_out",
    smaller="downsample.conv",
    larger="upsample.conv",
)
DIFFUSERS = Layout(
    down="down_blocks.{}",
    up="up_blocks.{}",
    up_from_finest=False,
    block="resnets",
    attention="attentions",
    mid=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    shortcut="conv_shortcut",
    norm="group_norm",
    qkv=("to_q", "to_k", "to_v", "to_out.0"),
    last_norm="conv_norm_out",
    smaller="downsamplers.0.conv",
    larger="upsamplers.0.conv",
)


def block(state: State, layout: Layout, name: str, x: Tensor, without: str) -> Tensor:
    activation = torch.relu if without == "swish" else F.silu
    y = conv(state, f"{name}.conv1", activation(group_norm(state, f"{name}.norm1", x)))
    y = conv(state, f"{name}.conv2", activation(group_norm(state, f"{name}.norm2", y)))
    if f"{name}.{layout.shortcut}.weight" in state:
        x = torch.zeros_like(y) if without == "shortcut" else conv(state, f"{name}.{layout.shortcut}", x)
    return x + y


def attention(state: State, layout: Layout, name: str, x: Tensor, without: str) -> Tensor:
    if f"{name}.{layout.norm}.weight" not in state:
        return x
    batch, width, height, columns = x.shape
    y = group_norm(state, f"{name}.{layout.norm}", x).flatten(2)  # [B, width, L]

    def project(part: str, t: Tensor) -> Tensor:
        return state[f"{name}.{part}.weight"].reshape(width, width) @ t + state[f"{name}.{part}.bias"][:, None]

    q, k, v = (project(part, y) for part in layout.qkv[:3])
    scale = 1.0 if without == "scale of attention" else width**-0.5
    weights = torch.softmax(q.transpose(1, 2) @ k * scale, dim=-1)
    return x + project(layout.qkv[3], v @ weights.transpose(1, 2)).reshape(x.shape)


def level(state: State, layout: Layout, name: str, x: Tensor, without: str) -> Tensor:
    j = 0
    while f"{name}.{layout.block}.{j}.conv1.weight" in state:
        x = block(state, layout, f"{name}.{layout.block}.{j}", x, without)
        if without != "attention of the last level":
            x = attention(state, layout, f"{name}.{layout.attention}.{j}", x, without)
        j += 1
    assert j > 0, name
    return x


def middle(state: State, layout: Layout, part: str, x: Tensor, without: str) -> Tensor:
    x = block(state, layout, f"{part}.{layout.mid[0]}", x, without)
    if without != "attention in the middle":
        x = attention(state, layout, f"{part}.{layout.mid[1]}", x, without)
    return block(state, layout, f"{part}.{layout.mid[2]}", x, without)


def encode(state: State, layout: Layout, levels: int, pixels_BCHW: Tensor, without: str = "") -> Tensor:
    """Vectors [B, L, D] of pixels in the range of the project."""
    x = conv(state, "encoder.conv_in", pixels_BCHW)
    for i in range(levels):
        name = f"encoder.{layout.down.format(i)}"
        x = level(state, layout, name, x, without)
        if i < levels - 1:
            around = (1, 0, 1, 0) if without == "padding right and below" else (0, 1, 0, 1)
            smaller = f"{name}.{layout.smaller}"
            x = F.conv2d(F.pad(x, around), state[f"{smaller}.weight"], state[f"{smaller}.bias"], stride=2)
    x = middle(state, layout, "encoder", x, without)
    x = conv(state, "encoder.conv_out", F.silu(group_norm(state, f"encoder.{layout.last_norm}", x)))
    return conv(state, "quant_conv", x).flatten(2).transpose(1, 2)


def decode(state: State, layout: Layout, levels: int, rows_BLD: Tensor, without: str = "") -> Tensor:
    """Pixels [B, 3, H, W], not clipped yet."""
    side = int(rows_BLD.shape[1] ** 0.5)
    x = conv(state, "post_quant_conv", rows_BLD.transpose(1, 2).unflatten(2, (side, side)))
    x = middle(state, layout, "decoder", conv(state, "decoder.conv_in", x), without)
    for step in range(levels):
        number = levels - 1 - step if layout.up_from_finest else step
        name = f"decoder.{layout.up.format(number)}"
        x = level(state, layout, name, x, without)
        if step < levels - 1:
            x = conv(state, f"{name}.{layout.larger}", x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    return conv(state, "decoder.conv_out", F.silu(group_norm(state, f"decoder.{layout.last_norm}", x)))


def random_state(
    layout: Layout, *, widths: tuple[int, ...], blocks: int, latent: int = 32, values: int = 8, attends: bool = True, seed: int = 0
) -> State:
    """All tensors of a published layout but the table, at reduced width and depth."""
    made = RandomState(seed)
    matrices = layout is DIFFUSERS

    def add_block(name: str, inputs: int, width: int) -> None:
        made.norm(f"{name}.norm1", inputs)
        made.norm(f"{name}.norm2", width)
        made.layer(f"{name}.conv1", width, inputs, 3, 3, gain=1.5)
        made.layer(f"{name}.conv2", width, width, 3, 3, gain=1.5)
        if inputs != width:
            made.layer(f"{name}.{layout.shortcut}", width, inputs, 1, 1)

    def add_attention(name: str, width: int) -> None:
        made.norm(f"{name}.{layout.norm}", width)
        for part in layout.qkv:
            made.layer(f"{name}.{part}", width, width, *(() if matrices else (1, 1)), gain=3.0)

    def add_middle(part: str, width: int) -> None:
        add_block(f"{part}.{layout.mid[0]}", width, width)
        add_block(f"{part}.{layout.mid[2]}", width, width)
        if attends:
            add_attention(f"{part}.{layout.mid[1]}", width)

    def add_level(name: str, inputs: int, width: int, count: int, *, coarsest: bool) -> None:
        for j in range(count):
            add_block(f"{name}.{layout.block}.{j}", inputs, width)
            inputs = width
            if coarsest and attends:
                add_attention(f"{name}.{layout.attention}.{j}", width)

    made.layer("encoder.conv_in", widths[0], 3, 3, 3, gain=3.0)
    inputs, last = widths[0], len(widths) - 1
    for i, width in enumerate(widths):
        name = f"encoder.{layout.down.format(i)}"
        add_level(name, inputs, width, blocks, coarsest=i == last)
        inputs = width
        if i < last:
            made.layer(f"{name}.{layout.smaller}", width, width, 3, 3, gain=1.5)
    add_middle("encoder", inputs)
    made.norm(f"encoder.{layout.last_norm}", inputs)
    made.layer("encoder.conv_out", latent, inputs, 3, 3, gain=1.5)
    made.layer("quant_conv", values, latent, 1, 1)
    made.layer("post_quant_conv", latent, values, 1, 1, gain=2.0)
    made.layer("decoder.conv_in", inputs, latent, 3, 3)
    add_middle("decoder", inputs)
    for step, width in enumerate(reversed(widths)):
        name = f"decoder.{layout.up.format(last - step if layout.up_from_finest else step)}"
        add_level(name, inputs, width, blocks + 1, coarsest=step == 0)
        inputs = width
        if step < last:
            made.layer(f"{name}.{layout.larger}", width, width, 3, 3)
    made.norm(f"decoder.{layout.last_norm}", inputs)
    made.layer("decoder.conv_out", 3, inputs, 3, 3, gain=1.5)
    return made.tensors
