"""A small autoencoder for the user's images: convolutions between patches and codes, trained by `vq_training`.

A linear path runs beside its networks, from patches to vectors and back. The path starts as the principal components of the patches, and
the last convolution of every other part starts at zero. Before the first step this is a k-means of patches, and every step improves on it.

Shapes: B images, p pixels of a patch's side, h and w sites, L = h * w, W channels of the networks, D values of a vector, Q levels.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.tokenizers.base import CodebookInfo, Layout, Preprocess, Tables, TokenizerSpec, square_layout
from tokenshards.pipeline.tokenizers.fitted.quantizers import METRICS, FsqBound
from tokenshards.pipeline.tokenizers.nearest_code import NearestCode, residual_ids
from tokenshards.pipeline.tokenizers.networks.network_tokenizer import NetworkTokenizer
from tokenshards.pipeline.tokenizers.networks.weights import as_tensors, count_parts, tensor_of

__all__ = ["COLOURS", "FAMILY", "Decoder", "Encoder", "VqAutoencoder"]

Floats = npt.NDArray[np.float32]

Part = TypeVar("Part", bound=nn.Module)

FAMILY = "vq-autoencoder"
COLOURS = (-1.0, 1.0)


def _silent(part: Part) -> Part:
    """Set all parameters of a module to zero, and return the module."""
    for parameter in part.parameters():
        nn.init.zeros_(parameter)
    return part


class _Block(nn.Module):
    """Two convolutions with a residual connection; before training only the residual connection passes a signal."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(width, width, 3, padding=1), _silent(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x_BWhw: Tensor) -> Tensor:
        result: Tensor = x_BWhw + self.last(functional.silu(self.first(functional.silu(x_BWhw))))
        return result


class Encoder(nn.Module):
    """Pixels [B, 3, h * p, w * p] to vectors [B, h * w, D], sites in raster order."""

    def __init__(self, *, patch: int, width: int, depth: int, code_width: int, fsq: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3, code_width, patch, patch)
        self.stem = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))
        self.head = _silent(nn.Conv2d(width, code_width, 1))
        self.bound = FsqBound(fsq) if fsq else nn.Identity()

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the vectors before the search."""
        vectors_BDhw = self.linear(pixels_BCHW) + self.head(functional.silu(self.blocks(self.stem(pixels_BCHW))))
        result: Tensor = self.bound(vectors_BDhw.flatten(2).transpose(1, 2).float())
        return result


class Decoder(nn.Module):
    """Vectors [B, h * w, D] to pixels [B, 3, h * p, w * p], which still have to be clipped."""

    def __init__(self, *, patch: int, width: int, depth: int, code_width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.linear = nn.ConvTranspose2d(code_width, 3, patch, patch)
        self.stem = nn.Conv2d(code_width, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))
        self.head = _silent(nn.ConvTranspose2d(width, 3, patch, patch))

    def forward(self, vectors_BLD: Tensor) -> Tensor:
        """Return pixels."""
        x_BDhw = vectors_BLD.transpose(1, 2).reshape(len(vectors_BLD), -1, self.side, self.side)
        result: Tensor = self.linear(x_BDhw) + self.head(functional.silu(self.blocks(self.stem(x_BDhw))))
        return result


class VqAutoencoder(NetworkTokenizer):
    """The tokenizer that `vq_training` makes. `config` names the quantizer and, for `fsq`, the levels of each dimension."""

    family = FAMILY
    ENCODER_KEYS = ("encoder.",)
    DECODER_KEYS = ("decoder.",)
    DROPPED_KEYS = ()

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Build the tokenizer back from its spec, tables and weights."""
        names = [f"level_{q}" for q in range(spec.layout.ids_per_site)]
        missing = [name for name in names if name not in tables]
        if missing:
            raise TokenizerError(f"{FAMILY}: {', '.join(missing)} missing among {sorted(tables)[:4]}; copy the whole tokenizer folder")
        return cls(
            as_tensors({name: value for name, value in tables.items() if name not in names}, ""),
            [np.asarray(tables[name]) for name in names],
            preprocess=spec.preprocess,
            config=spec.config,
            dtype=spec.dtype,
            where="",
        )

    def layout(self, preprocess: Preprocess) -> Layout:
        """A square grid of patches."""
        return square_layout(preprocess.size, self._sizes("encoder.")["patch"], len(self._tables), "sum", self._where)

    def code_width(self) -> int:
        """D, the values per site that the encoder's head gives."""
        return int(self._sizes("encoder.")["code_width"])

    def codebook_info(self, sha256: str, dims: tuple[int, ...]) -> CodebookInfo:
        """Return the metric of the quantizer."""
        return CodebookInfo(sha256=sha256, dims=dims, metric=METRICS[str(self._config["quantizer"])])

    def build_encoder(self) -> nn.Module:
        """Pixels to vectors before the search."""
        fsq = tuple(int(level) for level in self._config.get("fsq_levels", ()))
        return nn.Sequential(OrderedDict(encoder=Encoder(**self._sizes("encoder."), fsq=fsq)))

    def build_decoder(self) -> nn.Module:
        """Sums of table rows to pixels."""
        return nn.Sequential(OrderedDict(decoder=Decoder(**self._sizes("decoder."), side=self._spec.layout.grid[0])))

    def quantise(self, vectors_BLD: Tensor) -> Tensor:
        """Return ids [B, L, Q] of a residual search."""
        return residual_ids(self._search, vectors_BLD)

    def dequantise(self, ids_BLQ: Tensor) -> Tensor:
        """Return the sums [B, L, D] of each site's rows."""
        return torch.stack([search.rows(ids_BLQ[:, :, q]) for q, search in enumerate(self._search)]).sum(dim=0)

    @cached_property
    def _search(self) -> list[NearestCode]:
        return [NearestCode(table) for table in self._tables]

    def _sizes(self, prefix: str) -> dict[str, Any]:
        """Return the arguments of the networks, read from the shapes of their weights."""
        linear = tensor_of(self._state, f"{prefix}linear.weight", 4, self._where, f"a {FAMILY}")
        stem = tensor_of(self._state, f"{prefix}stem.weight", 4, self._where, f"a {FAMILY}")
        return {
            "patch": linear.shape[2],
            "width": stem.shape[0],
            "depth": count_parts(self._state, f"{prefix}blocks"),
            "code_width": linear.shape[0],
        }
