"""VQ-KD of BEiT v2 written down once more from the names of its published state dicts: plain tensor operations, nothing of ours.

`without` names a quirk that is left out, to show that ids depend on it. That keys have no bias decides nothing: one would add
the same to all scores of a query, which a softmax does not see.

Shapes: B images, L sites, D values of a code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pipeline.tokenizers.maskgit_reference import parts
from tests.pipeline.tokenizers.published_states import RandomState, State

PATCH = 16
QUIRKS = (
    "biases of queries and values",
    "class token in attention",
    "class token dropped",
    "last norm",
    "tanh",
    "gelu",
    "positions",
)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attention(state: State, name: str, x: Tensor, without: str) -> Tensor:
    batch, sites, width = x.shape
    q, k, v = (x @ state[f"{name}.qkv.weight"].T).split(width, dim=-1)
    if without != "biases of queries and values":
        q, v = q + state[f"{name}.q_bias"], v + state[f"{name}.v_bias"]
    q, k, v = (t.reshape(batch, sites, -1, 64).transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax((q * 64**-0.5) @ k.transpose(-1, -2), dim=-1)
    return linear(state, f"{name}.proj", (weights @ v).transpose(1, 2).reshape(batch, sites, width))


def encode(state: State, pixels_BCHW: Tensor, without: str = "") -> Tensor:
    """Vectors [B, L, D] of pixels from -1 to 1, of length 1."""
    patches = F.unfold(pixels_BCHW, PATCH, stride=PATCH).transpose(1, 2)
    x = patches @ state["encoder.patch_embed.proj.weight"].flatten(1).T + state["encoder.patch_embed.proj.bias"]
    classes = state["encoder.cls_token"].expand(len(x), -1, -1)
    positions = state["encoder.pos_embed"]
    x = torch.cat([classes, x], dim=1)
    x = x if without == "positions" else x + positions
    if without == "class token in attention":
        x = x[:, 1:]
    activation = torch.tanh if without == "gelu" else F.gelu
    for name in parts(state, "encoder.blocks"):
        x = x + attention(state, f"{name}.attn", norm(state, f"{name}.norm1", x), without)
        x = x + linear(state, f"{name}.mlp.fc2", activation(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x))))
    if without == "class token dropped":
        x = x[:, :-1]
    elif without != "class token in attention":
        x = x[:, 1:]
    x = x if without == "last norm" else norm(state, "encoder.fc_norm", x)
    hidden = linear(state, "encode_task_layer.0", x)
    hidden = F.gelu(hidden) if without == "tanh" else torch.tanh(hidden)
    return F.normalize(linear(state, "encode_task_layer.2", hidden), dim=-1)


def random_state(*, width: int = 128, depth: int = 2, side: int = 2, values: int = 8, seed: int = 0) -> State:
    """All tensors of the published layout but the table, at reduced width and depth."""
    made = RandomState(seed)
    made.tensors["encoder.cls_token"] = 3 * made.normal(1, 1, width)
    made.tensors["encoder.pos_embed"] = made.normal(1, 1 + side * side, width)
    made.layer("encoder.patch_embed.proj", width, 3, PATCH, PATCH, gain=3.0)
    for layer in range(depth):
        name = f"encoder.blocks.{layer}"
        made.norm(f"{name}.norm1", width)
        made.norm(f"{name}.norm2", width)
        made.weight(f"{name}.attn.qkv.weight", 3 * width, width, gain=1.5)
        made.tensors[f"{name}.attn.q_bias"] = 2 * made.normal(width)
        made.tensors[f"{name}.attn.v_bias"] = made.normal(width)
        made.layer(f"{name}.attn.proj", width, width, gain=2.0)
        made.layer(f"{name}.mlp.fc1", 4 * width, width)
        made.layer(f"{name}.mlp.fc2", width, 4 * width, gain=3.0)
    made.norm("encoder.fc_norm", width)
    made.layer("encode_task_layer.0", width, width, gain=2.0)
    made.layer("encode_task_layer.2", values, width)
    return made.tensors
