"""Tokenizers whose range of colours is known, because it was chosen here, or is that of real weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tokenshards.pipeline.shards.spec import Layout, Preprocess
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.fitted import taesd
from tokenshards.pipeline.tokenizers.kmeans.lloyd import kmeans
from tokenshards.pipeline.tokenizers.networks.codebook_tokenizer import CodebookTokenizer
from tokenshards.pipeline.tokenizers.networks.network import scaled, to_device

PATCH = 4


class _Sites(nn.Module):
    """[B, 3, H, W] to [B, L, D], under the prefix `encoder.`."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return self.encoder(pixels_BCHW).flatten(2).transpose(1, 2)


class _Pixels(nn.Module):
    """[B, L, D] to [B, 3, H, W], under the prefix `decoder.`."""

    def __init__(self, decoder: nn.Module, side: int) -> None:
        super().__init__()
        self.decoder, self.side = decoder, side

    def forward(self, vectors_BLD: Tensor) -> Tensor:
        return self.decoder(vectors_BLD.transpose(1, 2).reshape(len(vectors_BLD), -1, self.side, self.side))


class _Grid(CodebookTokenizer):
    ENCODER_KEYS = ("encoder.",)
    DECODER_KEYS = ("decoder.",)
    DROPPED_KEYS = ()
    stride = PATCH

    @classmethod
    def preprocess(cls, state: Mapping[str, Tensor], config: ImportConfig, decoder: str, where: str) -> Preprocess:
        raise NotImplementedError("its tests choose it")

    def layout(self, preprocess: Preprocess) -> Layout:
        side = preprocess.size // self.stride
        return Layout(kind="grid", grid=(side, side), sites=side * side)

    def code_width(self) -> int:
        return self._tables[0].shape[1]

    @property
    def side(self) -> int:
        return self._spec.layout.grid[0]


class PatchMeans(_Grid):
    """The mean colour of each patch, in whatever range its codes were fitted to."""

    family = "patch-means"

    def build_encoder(self) -> nn.Module:
        return _Sites(nn.Conv2d(3, 3, PATCH, PATCH, bias=False))

    def build_decoder(self) -> nn.Module:
        return _Pixels(nn.ConvTranspose2d(3, 3, PATCH, PATCH, bias=False), self.side)


class TaesdCodes(_Grid):
    """A TAESD network that looks at the range of its spec, where `latent-kmeans` has one of its own."""

    family = "taesd-codes"
    stride = taesd.STRIDE

    def _stripped(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self._state.items() if key.startswith(prefix)}

    def build_encoder(self) -> nn.Module:
        return _Sites(taesd.build_encoder(self._stripped("encoder."), self.family)[0])

    def build_decoder(self) -> nn.Module:
        return _Pixels(taesd.build_decoder(self._stripped("decoder."), self.family)[0], self.side)


def patch_means_state() -> dict[str, Tensor]:
    """Weights that average and repeat."""
    channels = torch.eye(3)[:, :, None, None].expand(3, 3, PATCH, PATCH)
    return {"encoder.weight": channels / PATCH**2, "decoder.weight": channels.clone()}


def trained(family: type[_Grid], state: dict[str, Tensor], images_BHWC: np.ndarray, colours: tuple[float, float], codes: int = 64) -> _Grid:
    """A tokenizer whose codes are fitted to what its encoder gives for these images in this range."""
    preprocess = Preprocess(size=images_BHWC.shape[1], colour_range=colours, decoder="test-1")
    width = next(reversed([value for key, value in state.items() if key.startswith("encoder.") and value.ndim == 4])).shape[0]
    encoder = family(state, np.zeros((1, width), np.float32), preprocess=preprocess, config={})._encoder
    points_ND = encoder(scaled(to_device(images_BHWC), colours)).flatten(0, 1).cpu().numpy()
    none_PD = np.zeros((0, width), np.float32)
    table = kmeans(points_ND, np.ones(len(points_ND)), codes, pinned_PD=none_PD, iterations=8, rng=np.random.default_rng(0))
    return family(state, table, preprocess=preprocess, config={})


def saved_with(tokenizer: _Grid, colours: tuple[float, float]) -> _Grid:
    """The same weights and codes under a spec with another range, as a wrong import would save them."""
    spec = tokenizer.spec
    changed = replace(spec, preprocess=replace(spec.preprocess, colour_range=colours))
    return type(tokenizer).from_saved(changed, {**tokenizer.codebook(), **tokenizer.weights()})
