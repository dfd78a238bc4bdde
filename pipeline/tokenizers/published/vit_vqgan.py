"""ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627) in the layout of enhancing-transformers, SeiT's tokenizer: 256 px to 32 x 32 cosine codes.

Its checkpoints differ from other vision transformers: tanh between the layers of the MLP, no bias for queries, keys and values, heads of 64
channels at every width, and positions that are read from the checkpoint although they never trained.

Shapes: B images, L sites, E channels of a transformer, D values of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.tokenizers.base import Layout, Preprocess
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.nearest_code import Metric
from tokenshards.pipeline.tokenizers.networks.codebook_tokenizer import CodebookTokenizer
from tokenshards.pipeline.tokenizers.networks.network_tokenizer import published_preprocess
from tokenshards.pipeline.tokenizers.networks.vit_block import Attention, Block, check_heads, renamed
from tokenshards.pipeline.tokenizers.networks.weights import count_parts, tensor_of

__all__ = ["VitVqgan"]

BLOCK_NAMES = {
    ".norm1.": ".0.norm.",
    ".attn.qkv.": ".0.fn.to_qkv.",
    ".attn.proj.": ".0.fn.to_out.",
    ".norm2.": ".1.norm.",
    ".mlp.fc1.": ".1.fn.net.0.",
    ".mlp.fc2.": ".1.fn.net.2.",
}
"""Names in a block and their names in enhancing-transformers."""


class _Transformer(nn.Module):
    """The stack of blocks; the tensors below `prefix` give the sizes."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str, width: int, where: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in range(count_parts(state, f"{prefix}.layers")):
            inner = tensor_of(state, f"{prefix}.layers.{layer}.0.fn.to_qkv.weight", 2, where, "a ViT-VQGAN").shape[0] // 3
            hidden = tensor_of(state, f"{prefix}.layers.{layer}.1.fn.net.0.weight", 2, where, "a ViT-VQGAN").shape[0]
            check_heads(inner, f"layer {layer} of {prefix}", where)
            self.layers.append(Block(Attention(width, inner=inner, bias="none"), width, hidden, activation=torch.tanh))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BLE: Tensor) -> Tensor:
        for layer in self.layers:
            x_BLE = layer(x_BLE)
        result: Tensor = self.norm(x_BLE)
        return result


class _Encoder(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        sites, width, patch = _sizes(state, where)
        self.en_pos_embedding = nn.Parameter(torch.zeros(1, sites, width))
        self.to_patch_embedding = nn.Sequential(nn.Conv2d(3, width, patch, patch))
        self.transformer = _Transformer(state, "encoder.transformer", width, where)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        patches_BLE = self.to_patch_embedding(pixels_BCHW).flatten(2).transpose(1, 2)
        # Every sum down the stack would keep a transposed memory order, and every layer would copy its input: 4 % of the time.
        result: Tensor = self.transformer(patches_BLE.contiguous() + self.en_pos_embedding)
        return result


class _PixelsToVectors(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        self.encoder = _Encoder(state, where)
        values, width = tensor_of(state, "pre_quant.weight", 2, where, "a ViT-VQGAN").shape
        self.pre_quant = nn.Linear(width, values)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        result: Tensor = self.pre_quant(self.encoder(pixels_BCHW))
        return result


class _Decoder(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], width: int, where: str) -> None:
        super().__init__()
        sites = tensor_of(state, "decoder.de_pos_embedding", 3, where, "a ViT-VQGAN").shape[1]
        patch = tensor_of(state, "decoder.to_pixel.1.weight", 4, where, "a ViT-VQGAN").shape[2]
        self.side = isqrt(sites)
        self.de_pos_embedding = nn.Parameter(torch.zeros(1, sites, width))
        self.transformer = _Transformer(state, "decoder.transformer", width, where)
        self.to_pixel = nn.Sequential(nn.Identity(), nn.ConvTranspose2d(width, 3, patch, patch))

    def forward(self, x_BLE: Tensor) -> Tensor:
        x_BLE = self.transformer(x_BLE + self.de_pos_embedding)
        result: Tensor = self.to_pixel(x_BLE.transpose(1, 2).reshape(len(x_BLE), -1, self.side, self.side))
        return result


class _VectorsToPixels(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        width, values = tensor_of(state, "post_quant.weight", 2, where, "a ViT-VQGAN").shape
        self.post_quant = nn.Linear(values, width)
        self.decoder = _Decoder(state, width, where)

    def forward(self, vectors_BLD: Tensor) -> Tensor:
        result: Tensor = self.decoder(self.post_quant(vectors_BLD))
        return result


class VitVqgan(CodebookTokenizer):
    """ViT-VQGAN small, base or any other size. The stored rows are raw; search and decoder use them scaled to length 1."""

    family = "vit-vqgan"
    metric: Metric = "cosine"
    TABLE_KEY = "quantizer.embedding.weight"
    ENCODER_KEYS = ("encoder.", "pre_quant.")
    DECODER_KEYS = ("decoder.", "post_quant.")
    DROPPED_KEYS = ("loss.",)

    @classmethod
    def preprocess(cls, state: Mapping[str, Tensor], config: ImportConfig, decoder: str, where: str) -> Preprocess:
        """The whole image squashed to a square with a bicubic filter, values from 0 to 1, as in SeiT's evaluation."""
        sites, _, patch = _sizes(state, where)
        return published_preprocess(config, size=isqrt(sites) * patch, resize="squash", filter="bicubic", decoder=decoder)

    def layout(self, preprocess: Preprocess) -> Layout:
        """A square grid of as many sites as there are positions."""
        sites, _, patch = _sizes(self._state, self._where)
        side = isqrt(sites)
        if side * side != sites or side * patch != preprocess.size:
            raise TokenizerError(
                f"{self._where}: {sites} positions and patches of {patch} pixels; expected those of a square of {preprocess.size} pixels"
            )
        return Layout(kind="grid", grid=(side, side), sites=sites)

    def code_width(self) -> int:
        """D, the channels of `pre_quant`."""
        return tensor_of(self._state, "pre_quant.weight", 2, self._where, "a ViT-VQGAN").shape[0]

    def published_name(self, key: str) -> str:
        """Return the name in the checkpoint for a key of the networks."""
        return renamed(key, BLOCK_NAMES, ".transformer.layers.")

    def build_encoder(self) -> nn.Module:
        """Pixels to vectors before the search."""
        return _PixelsToVectors(self._state, self._where)

    def build_decoder(self) -> nn.Module:
        """Rows of length 1 to pixels."""
        return _VectorsToPixels(self._state, self._where)


def _sizes(state: Mapping[str, Tensor], where: str) -> tuple[int, int, int]:
    """Return sites, width and patch side of the encoder."""
    _, sites, width = tensor_of(state, "encoder.en_pos_embedding", 3, where, "a ViT-VQGAN").shape
    patch = tensor_of(state, "encoder.to_patch_embedding.0.weight", 4, where, "a ViT-VQGAN").shape[2]
    return sites, width, patch
