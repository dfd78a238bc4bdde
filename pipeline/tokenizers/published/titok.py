"""TiTok (Yu et al. 2024, arXiv 2406.07550) and One-D-Piece (Miwa et al. 2025, arXiv 2501.10064): 256 px to a short sequence of codes.

Their checkpoints differ from other vision transformers. The first family (TiTok-L-32, B-64, S-128 and One-D-Piece) reads the latents
[N, W] as [W, N] without a transpose, compares codes scaled to length 1, and draws images through the decoder of MaskGIT's VQGAN. The later
family (`vq8k`) transposes, compares plain distances and draws pixels itself. The decoder in a file shows the family.

Shapes: B images, P patches, N latents, W width of a transformer, D values of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError, TokenizerError
from tokenshards.pipeline.tokenizers.base import Layout, Preprocess
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.networks.codebook_tokenizer import CodebookTokenizer, Floats
from tokenshards.pipeline.tokenizers.networks.network_tokenizer import published_preprocess
from tokenshards.pipeline.tokenizers.networks.vit_block import Block, TorchAttention, check_heads, renamed
from tokenshards.pipeline.tokenizers.networks.weights import count_parts, tensor_of
from tokenshards.pipeline.tokenizers.published.maskgit import PixelDecoder

__all__ = ["OneDPiece", "TiTok"]

WHAT = "a TiTok"
BLOCK_NAMES = {
    ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
"""Names in a block and their names in a TiTok."""
PUBLISHED_LATENTS = {"titok": (32, 64, 128), "one-d-piece": (256,)}
"""Numbers of latents in the published checkpoints with a pixel decoder."""
LEGACY, SITES = "reads_latents_unturned", "sites"


class _Stack(nn.Module):
    """Shared by encoder and decoder: positions, a class token, and blocks between two normalisations."""

    def __init__(self, state: Mapping[str, Tensor], name: str, where: str) -> None:
        super().__init__()
        places, width = tensor_of(state, f"{name}.positional_embedding", 2, where, WHAT).shape
        latents = tensor_of(state, f"{name}.latent_token_positional_embedding", 2, where, WHAT).shape[0]
        side = isqrt(places - 1)
        check_heads(width, name, where)
        if side * side + 1 != places:
            raise TokenizerError(f"{where}: {name} has {places} positions of {width} channels; expected a square and 1")
        self.side, self.width, self.latents = side, width, latents
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(places, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(latents, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(
            Block(TorchAttention(width), width, tensor_of(state, f"{name}.transformer.{i}.mlp.c_fc.weight", 2, where, WHAT).shape[0])
            for i in range(count_parts(state, f"{name}.transformer"))
        )

    def attend(self, patches_BPW: Tensor, latents_BNW: Tensor) -> Tensor:
        """Return [B, 1 + P + N, W] before the last normalisation: class token, patches, latents."""
        classes = self.class_embedding.expand(len(patches_BPW), 1, -1)
        x = torch.cat([classes, patches_BPW], dim=1) + self.positional_embedding
        latents_BNW = latents_BNW + self.latent_token_positional_embedding[: latents_BNW.shape[1]]
        x = self.ln_pre(torch.cat([x, latents_BNW], dim=1))
        for block in self.transformer:
            x = block(x)
        result: Tensor = x
        return result


class _Encoder(_Stack):
    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__(state, "encoder", where)
        patch = tensor_of(state, "encoder.patch_embed.weight", 4, where, WHAT).shape[2]
        values = tensor_of(state, "encoder.conv_out.weight", 4, where, WHAT).shape[0]
        self.patch_embed = nn.Conv2d(3, self.width, patch, patch)
        self.conv_out = nn.Conv2d(self.width, values, 1)

    def forward(self, pixels_BCHW: Tensor, latent_tokens_NW: Tensor, *, unturned: bool) -> Tensor:
        patches_BPW = self.patch_embed(pixels_BCHW).flatten(2).transpose(1, 2)
        x = self.attend(patches_BPW, latent_tokens_NW.expand(len(patches_BPW), -1, -1))
        latents_BNW = self.ln_post(x[:, -self.latents :])
        if unturned:
            latents_BWN = latents_BNW.reshape(len(x), self.width, self.latents)
        else:
            latents_BWN = latents_BNW.transpose(1, 2)
        result: Tensor = self.conv_out(latents_BWN[..., None])[..., 0].transpose(1, 2)
        return result


class _PixelsToVectors(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], sites: int, unturned: bool, where: str) -> None:
        super().__init__()
        self._sites, self._unturned = sites, unturned
        self.encoder = _Encoder(state, where)
        self.latent_tokens = nn.Parameter(torch.zeros(self.encoder.latents, self.encoder.width))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        vectors_BND: Tensor = self.encoder(pixels_BCHW, self.latent_tokens, unturned=self._unturned)
        return vectors_BND[:, : self._sites]


class _Decoder(_Stack):
    """Code vectors to one vector for each patch."""

    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__(state, "decoder", where)
        values = tensor_of(state, "decoder.decoder_embed.weight", 2, where, WHAT).shape[1]
        first = tensor_of(state, "decoder.ffn.0.weight", 4, where, WHAT).shape[0]
        self.decoder_embed = nn.Linear(values, self.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.width))
        self.ffn = nn.Sequential(nn.Conv2d(self.width, first, 1))
        last = state.get("decoder.ffn.2.weight")
        if last is not None:
            self.ffn += nn.Sequential(nn.Tanh(), nn.Conv2d(first, last.shape[0], 1))
        pixels = state.get("decoder.conv_out.weight")
        self.conv_out = nn.Identity() if pixels is None else nn.Conv2d(3, 3, pixels.shape[2], padding=pixels.shape[2] // 2)

    def forward(self, vectors_BND: Tensor) -> Tensor:
        masks_BPW = self.mask_token.expand(len(vectors_BND), self.side**2, -1)
        x = self.attend(masks_BPW, self.decoder_embed(vectors_BND))
        patches_BPW = self.ln_post(x[:, 1 : 1 + self.side**2])
        y = self.ffn(patches_BPW.transpose(1, 2).reshape(len(x), -1, self.side, self.side))
        if isinstance(self.conv_out, nn.Conv2d):
            y = _pixels_of_patches(y)
        result: Tensor = self.conv_out(y)
        return result


class _Words(nn.Module):
    """The table of MaskGIT's codes."""

    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(*tensor_of(state, "pixel_quantize.embedding.weight", 2, where, WHAT).shape)


class _VectorsToPixels(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], unturned: bool, where: str) -> None:
        super().__init__()
        self.decoder = _Decoder(state, where)
        if unturned:
            self.pixel_quantize = _Words(state, where)
            self.pixel_decoder = PixelDecoder(state, "pixel_decoder", where)

    def forward(self, vectors_BND: Tensor) -> Tensor:
        drawn: Tensor = self.decoder(vectors_BND)
        if not hasattr(self, "pixel_decoder"):
            return drawn
        mixed = torch.einsum("bkhw,kd->bdhw", drawn.softmax(1), self.pixel_quantize.embedding.weight)
        result: Tensor = self.pixel_decoder(mixed)
        return result


class TiTok(CodebookTokenizer):
    """TiTok of any size and number of latents. The places of the latents have no meaning in the image."""

    family = "titok"
    ENCODER_KEYS = ("encoder.", "latent_tokens")
    DECODER_KEYS = ("decoder.", "pixel_quantize.", "pixel_decoder.")
    DROPPED_KEYS = ("quantize.embed_prob",)
    ORDERED = False

    def __init__(self, state: Mapping[str, Tensor], codes_KD: Floats, *, config: Mapping[str, Any], **rest: Any) -> None:
        self.metric = "cosine" if config[LEGACY] else "l2"
        super().__init__(state, codes_KD, config=config, **rest)

    @classmethod
    def doubts(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, where: str) -> list[str]:
        """Compare the number of latents. Besides the order of its ids, only this number tells One-D-Piece from the first TiToks.

        Raises TokenizerError for the numbers that only the other project published.
        """
        latents = tensor_of(checkpoint, "latent_tokens", 2, where, WHAT).shape[0]
        unturned = any(key.startswith("pixel_") for key in checkpoint)
        other = next((kind for kind, numbers in PUBLISHED_LATENTS.items() if kind != cls.family and unturned and latents in numbers), None)
        if other or (cls.ORDERED and "decoder.conv_out.weight" in checkpoint):
            raise TokenizerError(
                f"{where}: it has {latents} latents and {'a' if unturned else 'no'} pixel decoder, as {other or 'the vq8k TiToks'} have; "
                f"{cls.family} does not. Whether ids go from coarse to fine would be recorded wrongly: give --kind {other or 'titok'}"
            )
        if unturned and latents not in PUBLISHED_LATENTS[cls.family]:
            known = ", ".join(map(str, PUBLISHED_LATENTS[cls.family]))
            return [
                f"it has {latents} latents, and the published checkpoints of {cls.family} have {known}: "
                "nothing in the file shows whether it is one"
            ]
        return []

    @classmethod
    def settings(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, where: str) -> dict[str, Any]:
        """Return the family of the checkpoint, and the number of ids kept of an image."""
        latents = tensor_of(checkpoint, "latent_tokens", 2, where, WHAT).shape[0]
        if config.max_tokens is not None and config.max_tokens > latents:
            raise ConfigError(f"--max-tokens is {config.max_tokens}; this checkpoint gives {latents}")
        return {LEGACY: "decoder.conv_out.weight" not in checkpoint, SITES: config.max_tokens or latents}

    @classmethod
    def preprocess(cls, state: Mapping[str, Tensor], config: ImportConfig, decoder: str, where: str) -> Preprocess:
        """Short side to 256 pixels and the centre, bicubic, values from 0 to 1."""
        places = tensor_of(state, "encoder.positional_embedding", 2, where, WHAT).shape[0]
        patch = tensor_of(state, "encoder.patch_embed.weight", 4, where, WHAT).shape[2]
        return published_preprocess(config, size=isqrt(places - 1) * patch, resize="crop", filter="bicubic", decoder=decoder)

    def layout(self, preprocess: Preprocess) -> Layout:
        """A sequence. In an ordered one, every prefix is a coarser image."""
        return Layout(kind="sequence", sites=self._config[SITES], ordered=self.ORDERED, prefix_decodable=self.ORDERED)

    def code_width(self) -> int:
        """D, the channels of the encoder's last convolution."""
        return tensor_of(self._state, "encoder.conv_out.weight", 4, self._where, WHAT).shape[0]

    def published_name(self, key: str) -> str:
        """Return the name in the checkpoint for a key of the networks."""
        return renamed(key, BLOCK_NAMES, "coder.transformer.")

    def build_encoder(self) -> nn.Module:
        """Pixels to the vectors of the latents."""
        return _PixelsToVectors(self._state, self._config[SITES], self._config[LEGACY], self._where)

    def build_decoder(self) -> nn.Module:
        """Code vectors to pixels."""
        return _VectorsToPixels(self._state, self._config[LEGACY], self._where)


class OneDPiece(TiTok):
    """One-D-Piece: TiTok whose ids go from coarse to fine, so that any number of first ids makes an image."""

    family = "one-d-piece"
    OPTIONS = ("max_tokens",)
    ORDERED = True


def _pixels_of_patches(x_BChw: Tensor) -> Tensor:
    """Return [B, 3, H, W] of patches whose channels run over rows, columns and colours, with colours fastest."""
    batch, channels, height, width = x_BChw.shape
    patch = isqrt(channels // 3)
    x = x_BChw.reshape(batch, patch, patch, 3, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, 3, height * patch, width * patch)
