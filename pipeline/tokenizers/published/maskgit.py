"""MaskGIT's VQGAN (Chang et al. 2022, arXiv 2202.04200) in the layout of its torch ports: 256 px to 16 x 16 codes, no attention.

Its checkpoints differ from other VQGANs: convolutions have no bias, averages replace strides, and the shortcut reads the block's own
output, so that a block that changes the width does not pass its input on.

Shapes: B images, L sites, h and w sides of the grid, D values of a code, G = 32 groups of a normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from tokenshards.pipeline.tokenizers.base import Layout, Preprocess
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.networks.codebook_tokenizer import CodebookTokenizer
from tokenshards.pipeline.tokenizers.networks.network_tokenizer import published_preprocess
from tokenshards.pipeline.tokenizers.networks.square_grid import PixelsToVectors, VectorsToPixels, square_grid
from tokenshards.pipeline.tokenizers.networks.weights import count_parts, tensor_of

__all__ = ["MaskGitVqgan", "PixelDecoder"]

WHAT = "a MaskGIT-VQGAN"
GROUPS = 32
SIZE = 256


class _Block(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], name: str, where: str) -> None:
        super().__init__()
        width, inputs = tensor_of(state, f"{name}.conv1.weight", 4, where, WHAT).shape[:2]
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm2, self.conv2 = _norm(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(width, width, 1, bias=False) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        result: Tensor = y + (x if self.nin_shortcut is None else self.nin_shortcut(y))
        return result


class _Level(nn.Module):
    """The blocks of one resolution and, in the decoder, the layer after them."""

    def __init__(self, state: Mapping[str, Tensor], name: str, where: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(state, f"{name}.block.{j}", where) for j in range(count_parts(state, f"{name}.block")))
        upsample = state.get(f"{name}.upsample_conv.weight")
        self.upsample_conv = None if upsample is None else nn.Conv2d(upsample.shape[1], upsample.shape[0], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample_conv is None else self.upsample_conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Encoder(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        width, channels, _, _ = tensor_of(state, "encoder.conv_in.weight", 4, where, WHAT).shape
        values, last = tensor_of(state, "encoder.conv_out.weight", 4, where, WHAT).shape[:2]
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList(_Level(state, f"encoder.down.{i}", where) for i in range(count_parts(state, "encoder.down")))
        self.mid = nn.ModuleList(_Block(state, f"encoder.mid.{j}", where) for j in range(count_parts(state, "encoder.mid")))
        self.norm_out, self.conv_out = _norm(last), nn.Conv2d(last, values, 1)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x = self.conv_in(pixels_BCHW)
        for index, level in enumerate(self.down):
            x = level(x)
            if index + 1 < len(self.down):
                x = functional.avg_pool2d(x, 2)
        for block in self.mid:
            x = block(x)
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result


class PixelDecoder(nn.Module):
    """Vectors [B, D, h, w] to pixels from 0 to 1, [B, 3, H, W]. The tensors below `name` give the sizes."""

    def __init__(self, state: Mapping[str, Tensor], name: str, where: str) -> None:
        super().__init__()
        width, values = tensor_of(state, f"{name}.conv_in.weight", 4, where, WHAT).shape[:2]
        channels, last = tensor_of(state, f"{name}.conv_out.weight", 4, where, WHAT).shape[:2]
        self.conv_in = nn.Conv2d(values, width, 3, padding=1)
        self.mid = nn.ModuleList(_Block(state, f"{name}.mid.{j}", where) for j in range(count_parts(state, f"{name}.mid")))
        self.up = nn.ModuleList(_Level(state, f"{name}.up.{i}", where) for i in range(count_parts(state, f"{name}.up")))
        self.norm_out, self.conv_out = _norm(last), nn.Conv2d(last, channels, 3, padding=1)

    def forward(self, vectors_BDhw: Tensor) -> Tensor:
        """Return the pixels. Levels are numbered from the finest, which comes last."""
        x = self.conv_in(vectors_BDhw)
        for part in (*self.mid, *reversed(self.up)):
            x = part(x)
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result


class MaskGitVqgan(CodebookTokenizer):
    """MaskGIT's VQGAN of any width. Images may have any side that its strides divide."""

    family = "maskgit"
    ENCODER_KEYS = ("encoder.",)
    DECODER_KEYS = ("decoder.",)
    DROPPED_KEYS = ("loss.",)
    OPTIONS = ("size",)

    @classmethod
    def preprocess(cls, state: Mapping[str, Tensor], config: ImportConfig, decoder: str, where: str) -> Preprocess:
        """Short side to 256 pixels and the centre, bicubic, values from 0 to 1."""
        return published_preprocess(config, size=config.size or SIZE, resize="crop", filter="bicubic", decoder=decoder)

    def layout(self, preprocess: Preprocess) -> Layout:
        """A square grid; each level but the first halves its side."""
        return square_grid(preprocess.size, count_parts(self._state, "encoder.down"), self._where)

    def code_width(self) -> int:
        """D, the channels of the encoder's last convolution."""
        return tensor_of(self._state, "encoder.conv_out.weight", 4, self._where, WHAT).shape[0]

    def build_encoder(self) -> nn.Module:
        """Pixels to vectors."""
        return PixelsToVectors(_Encoder(self._state, self._where))

    def build_decoder(self) -> nn.Module:
        """Rows to pixels."""
        return VectorsToPixels(PixelDecoder(self._state, "decoder", self._where), self.spec.layout.grid)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)
