"""Open-MAGVIT2 (Luo et al. 2024, arXiv 2409.04410): 256 px to 16 x 16 codes of 18 signs, without a table.

Its checkpoints differ from other VQGANs: convolutions have no bias, strides have the same padding on all sides, the sign of channel 0 is
the lowest bit, and the decoder scales every level by the spread, and shifts it by the mean, of all signs of the image.

The published id of a site is one number below 2**18. Here a site has two ids of 9 signs each, which fit uint16. The vectors of both ids,
side by side, are the signs: published = ids[0] + 2**9 * ids[1].

Shapes: B images, L sites, Q groups of signs, K codes of a group, D signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.tokenizers.base import CodebookInfo, Layout, Preprocess, Tables, TokenizerSpec
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.networks.network_tokenizer import NetworkTokenizer, published_preprocess
from tokenshards.pipeline.tokenizers.networks.square_grid import PixelsToVectors, VectorsToPixels, square_grid
from tokenshards.pipeline.tokenizers.networks.weights import EMA, as_tensors, count_parts, tensor_of, with_ema

__all__ = ["OpenMagvit2", "sign_tables"]

WHAT = "an Open-MAGVIT2 tokenizer"
GROUPS, EPSILON = 32, 1e-6
SIZE = 256
GROUP_SIGNS = 9
"""Most signs of one id: 18 signs become 9 and 9, 14 become 7 and 7."""


class _Block(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], name: str, where: str) -> None:
        super().__init__()
        width, inputs = tensor_of(state, f"{name}.conv1.weight", 4, where, WHAT).shape[:2]
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm2, self.conv2 = _norm(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(inputs, width, 1, bias=False) if inputs != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        result: Tensor = y + self.nin_shortcut(x)
        return result


class _Upsample(nn.Module):
    """Turns four times the channels into 2 x 2 pixels. The four channels of one pixel block lie together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, columns = x.shape
        y: Tensor = self.conv1(x).reshape(batch, 2, 2, width, height, columns).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(batch, width, 2 * height, 2 * columns)


class _Level(nn.Module):
    """The blocks of one resolution, and the layer that leads to the next resolution."""

    def __init__(self, state: Mapping[str, Tensor], name: str, where: str) -> None:
        super().__init__()
        self.block = _blocks(state, f"{name}.block", where)
        width = tensor_of(state, f"{name}.block.0.conv1.weight", 4, where, WHAT).shape[0]
        if f"{name}.downsample.weight" in state:
            self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        if f"{name}.upsample.conv1.weight" in state:
            self.upsample = _Upsample(width)

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.block, *(getattr(self, name) for name in ("downsample", "upsample") if hasattr(self, name))):
            x = part(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        width = tensor_of(state, "encoder.conv_in.weight", 4, where, WHAT).shape[0]
        signs, last = tensor_of(state, "encoder.conv_out.weight", 4, where, WHAT).shape[:2]
        self.conv_in = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList(_Level(state, f"encoder.down.{i}", where) for i in range(count_parts(state, "encoder.down")))
        self.mid_block = _blocks(state, "encoder.mid_block", where)
        self.norm_out, self.conv_out = _norm(last), nn.Conv2d(last, signs, 1)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x = self.conv_in(pixels_BCHW)
        for part in (*self.down, *self.mid_block):
            x = part(x)
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result


class _AdaptiveNorm(nn.Module):
    def __init__(self, signs: int, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Linear(signs, width), nn.Linear(signs, width)

    def forward(self, x: Tensor, signs_BDL: Tensor) -> Tensor:
        scale = self.gamma((signs_BDL.var(dim=-1) + EPSILON).sqrt())
        shift = self.beta(signs_BDL.mean(dim=-1))
        result: Tensor = scale[..., None, None] * functional.group_norm(x, GROUPS, eps=EPSILON) + shift[..., None, None]
        return result


class _Decoder(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        width, signs = tensor_of(state, "decoder.conv_in.weight", 4, where, WHAT).shape[:2]
        last = tensor_of(state, "decoder.conv_out.weight", 4, where, WHAT).shape[1]
        self.conv_in = nn.Conv2d(signs, width, 3, padding=1)
        self.mid_block = _blocks(state, "decoder.mid_block", where)
        self.up = nn.ModuleList(_Level(state, f"decoder.up.{i}", where) for i in range(count_parts(state, "decoder.up")))
        self.adaptive = nn.ModuleList(
            _AdaptiveNorm(signs, tensor_of(state, f"decoder.adaptive.{i}.gamma.weight", 2, where, WHAT).shape[0])
            for i in range(count_parts(state, "decoder.adaptive"))
        )
        self.norm_out, self.conv_out = _norm(last), nn.Conv2d(last, 3, 3, padding=1)

    def forward(self, signs_BDhw: Tensor) -> Tensor:
        x = self.conv_in(signs_BDhw)
        for block in self.mid_block:
            x = block(x)
        for adapt, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):  # both are numbered from the finest level
            x = level(adapt(x, signs_BDhw.flatten(2)))
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result


class OpenMagvit2(NetworkTokenizer):
    """Open-MAGVIT2 for images, with any number of signs. Images may have any side that its strides divide."""

    family = "open-magvit2"
    ENCODER_KEYS = ("encoder.",)
    DECODER_KEYS = ("decoder.",)
    DROPPED_KEYS = ("loss.", EMA)
    OPTIONS = ("size",)

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, *, decoder: str, where: str) -> Self:
        """Build the tokenizer of a checkpoint from the moving averages of its parameters, as the next stage of Open-MAGVIT2 does."""
        chosen = with_ema(checkpoint, cls.ENCODER_KEYS + cls.DECODER_KEYS, where) if config.ema else checkpoint
        state = cls.networks_of(chosen, config, None, where)
        size = config.size or SIZE
        preprocess = published_preprocess(config, size=size, resize="crop", filter="bicubic", colour_range=(-1.0, 1.0), decoder=decoder)
        signs = tensor_of(state, "encoder.conv_out.weight", 4, where, WHAT).shape[0]
        built = cls(state, sign_tables(signs), preprocess=preprocess, config={}, dtype=config.dtype, where=where)
        built.check_networks()
        return built

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Build the tokenizer from its spec and weights; the number of signs determines its tables."""
        state = as_tensors({name: value for name, value in tables.items() if not name.startswith("level_")}, "")
        signs = tensor_of(state, "encoder.conv_out.weight", 4, cls.family, WHAT).shape[0]
        return cls(state, sign_tables(signs), preprocess=spec.preprocess, config=spec.config, dtype=spec.dtype, where=cls.family)

    def layout(self, preprocess: Preprocess) -> Layout:
        """A square grid with two ids per site; each level but the first halves its side."""
        return square_grid(preprocess.size, count_parts(self._state, "encoder.down"), self._where, ids_per_site=len(self._tables))

    def code_width(self) -> int:
        """D, the signs of a site."""
        return tensor_of(self._state, "encoder.conv_out.weight", 4, self._where, WHAT).shape[0]

    def codebook_info(self, sha256: str, dims: tuple[int, ...]) -> CodebookInfo:
        """Return the info that ids are signs."""
        return CodebookInfo(sha256=sha256, dims=dims, metric="sign")

    def keep(self, codes: Sequence[int]) -> Self:
        """Raise TokenizerError: there is no table to leave codes out of."""
        raise TokenizerError(f"{self.family}: its ids are signs without a table, so none can be left out. Leave out --keep-codes")

    def build_encoder(self) -> nn.Module:
        """Pixels to numbers whose signs are the code."""
        return PixelsToVectors(_Encoder(self._state, self._where))

    def build_decoder(self) -> nn.Module:
        """Signs to pixels."""
        return VectorsToPixels(_Decoder(self._state, self._where), self.spec.layout.grid)

    def quantise(self, vectors_BLD: Tensor) -> Tensor:
        """Return the signs as numbers; the first channels are the lowest bits, and 0 counts as negative."""
        ids: list[Tensor] = []
        for part_BLd in torch.split((vectors_BLD > 0).long(), [table.shape[1] for table in self._tables], dim=-1):
            ids.append((part_BLd << torch.arange(part_BLd.shape[-1], device=part_BLd.device)).sum(dim=-1))
        return torch.stack(ids, dim=-1)

    def dequantise(self, ids_BLQ: Tensor) -> Tensor:
        """Return the signs [B, L, D] as 1 and -1."""
        parts = [torch.from_numpy(table)[ids_BLQ[..., q]] for q, table in enumerate(self._tables)]
        return torch.cat(parts, dim=-1)


def sign_tables(signs: int) -> list[npt.NDArray[np.float32]]:
    """Return the vectors [K, d] of each group of signs; groups differ by at most one sign. Row k holds the bits of k, lowest first, as 1
    and -1."""
    groups = -(-signs // GROUP_SIGNS)
    sizes = [len(part) for part in np.array_split(np.arange(signs), groups)]
    return [(((np.arange(1 << size)[:, None] >> np.arange(size)) & 1) * 2 - 1).astype(np.float32) for size in sizes]


def _blocks(state: Mapping[str, Tensor], name: str, where: str) -> nn.ModuleList:
    return nn.ModuleList(_Block(state, f"{name}.{j}", where) for j in range(count_parts(state, name)))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=EPSILON)
