"""VQ-KD, the tokenizer of BEiT v2 (Peng et al. 2022, arXiv 2208.06366): 224 px to 14 x 14 codes that follow the features of CLIP or DINO.

Its checkpoints differ from other vision transformers: queries and values have a bias and keys have none; vectors of length 1 are compared
with the raw rows; pixels always run from -1 to 1, where the original code guesses their range from each batch.

Shapes: B images, P patches, W width of a transformer, D values of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, Images, Layout, Preprocess
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.networks.codebook_tokenizer import CodebookTokenizer
from tokenshards.pipeline.tokenizers.networks.network_tokenizer import published_preprocess
from tokenshards.pipeline.tokenizers.networks.vit_block import Attention, Block, check_heads
from tokenshards.pipeline.tokenizers.networks.weights import count_parts, tensor_of

__all__ = ["VqKd"]

WHAT = "a VQ-KD tokenizer"
EPSILON = 1e-6
RESIZED, CUT = 256, 224
"""Pixels of the short side and of the centre crop, for positions of 224 pixels."""


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class _Encoder(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        places, width, patch = _sizes(state, where)
        check_heads(width, "the encoder", where)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, places, width))
        self.patch_embed = _PatchEmbed(width, patch)
        self.blocks = nn.ModuleList(
            Block(
                Attention(width, bias="queries and values"),
                width,
                tensor_of(state, f"encoder.blocks.{i}.mlp.fc1.weight", 2, where, WHAT).shape[0],
                epsilon=EPSILON,
            )
            for i in range(count_parts(state, "encoder.blocks"))
        )
        self.fc_norm = nn.LayerNorm(width, EPSILON)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        patches_BPW = self.patch_embed.proj(pixels_BCHW).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(patches_BPW), -1, -1), patches_BPW], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.fc_norm(x[:, 1:])
        return result


class _PixelsToVectors(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        self.encoder = _Encoder(state, where)
        hidden, width = tensor_of(state, "encode_task_layer.0.weight", 2, where, WHAT).shape
        values = tensor_of(state, "encode_task_layer.2.weight", 2, where, WHAT).shape[0]
        self.encode_task_layer = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, values))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        features = self.encoder(pixels_BCHW)
        with torch.autocast(features.device.type, enabled=False):  # as in the original code
            return functional.normalize(self.encode_task_layer(features.float()), dim=-1)


class VqKd(CodebookTokenizer):
    """VQ-KD with any teacher. It was trained to give the features of its teacher, so no decoder leads back to images."""

    family = "vq-kd"
    ENCODER_KEYS = ("encoder.", "encode_task_layer.")
    DECODER_KEYS = ()
    DROPPED_KEYS = (
        "decoder.",
        "decode_task_layer.",
        "teacher",
        "scaling",
        "loss",
        "quantize.cluster_size",
        "quantize.embedding.cluster_size",
        "quantize.embedding.embed_avg",
        "quantize.embedding.initted",
    )

    @classmethod
    def preprocess(cls, state: Mapping[str, Tensor], config: ImportConfig, decoder: str, where: str) -> Preprocess:
        """Short side to 256 pixels, 224 cut out of the middle, bicubic, values from -1 to 1."""
        places, _, patch = _sizes(state, where)
        size = isqrt(places - 1) * patch
        sides = {"size": size, "short_side": size * RESIZED // CUT}
        return published_preprocess(config, **sides, resize="crop", filter="bicubic", colour_range=(-1.0, 1.0), decoder=decoder)

    def layout(self, preprocess: Preprocess) -> Layout:
        """A square grid."""
        places, _, patch = _sizes(self._state, self._where)
        side = isqrt(places - 1)
        if side * side + 1 != places or side * patch != preprocess.size:
            raise TokenizerError(f"{self._where}: {places} positions and patches of {patch} pixels; expected a square and the class token")
        return Layout(kind="grid", grid=(side, side), sites=side * side)

    def code_width(self) -> int:
        """D, the outputs of the task layer."""
        return tensor_of(self._state, "encode_task_layer.2.weight", 2, self._where, WHAT).shape[0]

    def build_encoder(self) -> nn.Module:
        """Pixels to vectors of length 1."""
        return _PixelsToVectors(self._state, self._where)

    def build_decoder(self) -> nn.Module:
        """Raise DecodeNotSupported: there is no decoder to pixels."""
        raise DecodeNotSupported(f"{self.family}: its decoder gives features of its teacher, so there is no way back to pixels")

    def decode(self, tokens: TokenBatch) -> Images:
        """Raise DecodeNotSupported."""
        self.build_decoder()
        return super().decode(tokens)


def _sizes(state: Mapping[str, Tensor], where: str) -> tuple[int, int, int]:
    """Return positions with the class token, width and patch side."""
    _, places, width = tensor_of(state, "encoder.pos_embed", 3, where, WHAT).shape
    return places, width, tensor_of(state, "encoder.patch_embed.proj.weight", 4, where, WHAT).shape[2]
