"""TiTok and One-D-Piece written down once more from the names of their published state dicts: plain tensor operations, nothing of ours.

`without` names a quirk that is left out, to show that ids depend on it.

Shapes: B images, P patches, N latents, W width, D values of a code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pipeline.tokenizers import maskgit_reference
from tests.pipeline.tokenizers.published_states import RandomState, State
from tests.pipeline.tokenizers.vit_vqgan_reference import linear, norm

PATCH = 16
QUIRKS = ("unturned", "order of the sequence", "class token", "latents with positions", "norm before all", "gelu", "last norm")


def attention(state: State, name: str, x: Tensor) -> Tensor:
    batch, sites, width = x.shape
    q, k, v = (x @ state[f"{name}.in_proj_weight"].T + state[f"{name}.in_proj_bias"]).split(width, dim=-1)
    heads = []
    for first in range(0, width, 64):
        span = slice(first, first + 64)
        weights = torch.softmax(q[..., span] @ k[..., span].transpose(-1, -2) / 8, dim=-1)
        heads.append(weights @ v[..., span])
    return linear(state, f"{name}.out_proj", torch.cat(heads, dim=-1))


def stack(state: State, part: str, patches_BPW: Tensor, latents_BNW: Tensor, without: str) -> Tensor:
    batch = len(patches_BPW)
    classes = state[f"{part}.class_embedding"].expand(batch, 1, -1)
    if without == "class token":
        classes = torch.zeros_like(classes)
    x = torch.cat([classes, patches_BPW], dim=1) + state[f"{part}.positional_embedding"]
    if without != "latents with positions":
        latents_BNW = latents_BNW + state[f"{part}.latent_token_positional_embedding"][: latents_BNW.shape[1]]
    x = torch.cat([x, latents_BNW], dim=1)
    if without != "norm before all":
        x = norm(state, f"{part}.ln_pre", x)
    activation = torch.tanh if without == "gelu" else F.gelu
    for name in maskgit_reference.parts(state, f"{part}.transformer"):
        x = x + attention(state, f"{name}.attn", norm(state, f"{name}.ln_1", x))
        y = activation(linear(state, f"{name}.mlp.c_fc", norm(state, f"{name}.ln_2", x)))
        x = x + linear(state, f"{name}.mlp.c_proj", y)
    return x


def encode(state: State, pixels_BCHW: Tensor, *, legacy: bool, without: str = "") -> Tensor:
    """Vectors [B, N, D] of pixels from 0 to 1."""
    patches = F.unfold(pixels_BCHW, PATCH, stride=PATCH).transpose(1, 2)
    x = patches @ state["encoder.patch_embed.weight"].flatten(1).T + state["encoder.patch_embed.bias"]
    count = len(state["latent_tokens"])
    x = stack(state, "encoder", x, state["latent_tokens"].expand(len(x), -1, -1), without)
    latents = x[:, 1 : 1 + count] if without == "order of the sequence" else x[:, -count:]
    if without != "last norm":
        latents = norm(state, "encoder.ln_post", latents)
    if legacy and without != "unturned":
        latents = latents.reshape(len(x), -1, count).transpose(1, 2)
    return latents @ state["encoder.conv_out.weight"][:, :, 0, 0].T + state["encoder.conv_out.bias"]


def decode(state: State, rows_BND: Tensor, *, legacy: bool, without: str = "") -> Tensor:
    """Pixels [B, 3, H, W], not clipped yet, of code vectors as the decoder takes them."""
    batch, count = len(rows_BND), len(state["decoder.positional_embedding"]) - 1
    side = int(count**0.5)
    masks = state["decoder.mask_token"].expand(batch, count, -1)
    x = stack(state, "decoder", masks, linear(state, "decoder.decoder_embed", rows_BND), without)
    x = norm(state, "decoder.ln_post", x[:, 1 : 1 + count]).transpose(1, 2).reshape(batch, -1, side, side)
    x = F.conv2d(x, state["decoder.ffn.0.weight"], state["decoder.ffn.0.bias"])
    if legacy:
        x = F.conv2d(torch.tanh(x), state["decoder.ffn.2.weight"], state["decoder.ffn.2.bias"])
        words = torch.softmax(x, dim=1).permute(0, 2, 3, 1) @ state["pixel_quantize.embedding.weight"]
        return maskgit_reference.decode(state, words.permute(0, 3, 1, 2), prefix="pixel_decoder")
    image = torch.zeros(batch, 3, side * PATCH, side * PATCH)
    for row in range(PATCH):
        for column in range(PATCH):
            for colour in range(3):
                image[:, colour, row::PATCH, column::PATCH] = x[:, (row * PATCH + column) * 3 + colour]
    return F.conv2d(image, state["decoder.conv_out.weight"], state["decoder.conv_out.bias"], padding=1)


def random_state(
    *, legacy: bool, latents: int = 6, width: int = 128, depth: int = 2, side: int = 2, values: int = 8, seed: int = 0
) -> State:
    """All tensors of the published layout but the table, at reduced width and depth."""
    made = RandomState(seed)
    made.tensors["latent_tokens"] = made.normal(latents, width)
    for part in ("encoder", "decoder"):
        made.tensors[f"{part}.class_embedding"] = 3 * made.normal(1, width)
        made.tensors[f"{part}.positional_embedding"] = made.normal(1 + side * side, width)
        made.tensors[f"{part}.latent_token_positional_embedding"] = made.normal(latents, width)
        for name in ("ln_pre", "ln_post"):
            made.norm(f"{part}.{name}", width)
        for layer in range(depth):
            name = f"{part}.transformer.{layer}"
            made.norm(f"{name}.ln_1", width)
            made.norm(f"{name}.ln_2", width)
            made.weight(f"{name}.attn.in_proj_weight", 3 * width, width, gain=1.5)
            made.bias(f"{name}.attn.in_proj_bias", 3 * width)
            made.layer(f"{name}.attn.out_proj", width, width, gain=2.0)
            made.layer(f"{name}.mlp.c_fc", 4 * width, width)
            made.layer(f"{name}.mlp.c_proj", width, 4 * width, gain=2.0)
    made.layer("encoder.patch_embed", width, 3, PATCH, PATCH, gain=4.0)
    made.layer("encoder.conv_out", values, width, 1, 1)
    made.layer("decoder.decoder_embed", width, values, gain=2.0)
    made.tensors["decoder.mask_token"] = made.normal(1, 1, width)
    if not legacy:
        made.layer("decoder.ffn.0", 3 * PATCH * PATCH, width, 1, 1)
        made.layer("decoder.conv_out", 3, 3, 3, 3)
        return made.tensors
    made.layer("decoder.ffn.0", 2 * width, width, 1, 1)
    made.layer("decoder.ffn.2", 24, 2 * width, 1, 1, gain=3.0)
    made.weight("pixel_quantize.embedding.weight", 24, 8, gain=3.0)
    maskgit_reference.add_decoder(made, (32, 32, 32, 32, 64), 8, prefix="pixel_decoder")
    return made.tensors
