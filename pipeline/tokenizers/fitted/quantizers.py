"""Trainable quantizers from vector-quantize-pytorch: vector quantization with moving averages (residual for several levels), FSQ, LFQ.

Training yields tables of code vectors. A trained tokenizer looks up the nearest row and no longer needs the library.

Shapes: B images, L sites, N = B * L vectors, Q levels, K codes of a level, D values of a vector.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.tokenizers.config import FSQ_LEVELS, VqFitConfig

__all__ = ["METRICS", "FsqBound", "TrainedQuantizer", "quantizer_library"]

METRICS: dict[str, Literal["l2", "sign", "fsq"]] = {"vq": "l2", "lfq": "sign", "fsq": "fsq"}

FSQ_MARGIN = 1e-3
MAX_REVIVED_USES = 2.0
"""A code with a lower moving average of uses per batch is dead, and becomes one of the batch's vectors."""
ENTROPY_SCORES = 1 << 24
"""Most scores in the entropy of LFQ per step; of a larger batch only some vectors are used."""


class FsqBound(nn.Module):
    """Maps each dimension into the range of its levels, scaled to -1 … 1 (Mentzer et al. 2023, arXiv 2309.15505, section 3.1).

    The nearest row of the implied table is then each dimension rounded for itself.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        levels_D = torch.tensor(levels)
        half_D = (levels_D - 1) * (1 + FSQ_MARGIN) / 2
        offset_D = torch.where(levels_D % 2 == 0, 0.5, 0.0)
        for name, value in (
            ("half_width", half_D),
            ("offset", offset_D),
            ("shift", torch.atanh(offset_D / half_D)),
            ("steps", levels_D // 2),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, vectors_BLD: Tensor) -> Tensor:
        """Return vectors of the same shape."""
        parts: dict[str, Tensor] = dict(self.named_buffers())
        return (torch.tanh(vectors_BLD + parts["shift"]) * parts["half_width"] - parts["offset"]) / parts["steps"]


def quantizer_library() -> Any:
    """Return vector-quantize-pytorch. Raises ConfigError where it is not installed."""
    with optional_import("--kind vq-autoencoder needs vector-quantize-pytorch", extra="fit"):
        import vector_quantize_pytorch as library
    return library


class TrainedQuantizer(nn.Module):
    """A quantizer of vectors [B, L, D]."""

    def __init__(self, config: VqFitConfig, *, vectors_per_batch: int) -> None:
        super().__init__()
        library = quantizer_library()
        self.code_width = config.vq_width
        if config.quantizer == "vq":
            dead = min(MAX_REVIVED_USES, 0.1 * vectors_per_batch / config.codes)  # with many codes, few vectors of a batch use each
            self.module = library.ResidualVQ(
                dim=config.vq_width,
                num_quantizers=config.levels,
                codebook_size=config.codes,
                decay=config.decay,
                threshold_ema_dead_code=dead,
                kmeans_init=True,
                commitment_weight=1.0,
                rotation_trick=False,
            )
        elif config.quantizer == "fsq":
            self.code_width = len(FSQ_LEVELS[config.codes])
            self.module = library.FSQ(list(FSQ_LEVELS[config.codes]))
        else:
            self.code_width = int(math.log2(config.codes))
            share = min(1.0, ENTROPY_SCORES / (vectors_per_batch * config.codes))
            self.module = library.LFQ(codebook_size=config.codes, commitment_loss_weight=0.25, frac_per_sample_entropy=share)

    def forward(self, vectors_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the decoder, with straight-through gradients, and the loss that pulls vectors and codes together."""
        found = self.module(vectors_BLD)
        loss = found[2].sum() if len(found) > 2 else vectors_BLD.new_zeros(())
        return found[0], loss

    def tables(self) -> list[npt.NDArray[np.float32]]:
        """Return the table [K, D] of each level."""
        module: Any = self.module
        if hasattr(module, "layers"):
            found = [layer.codebook for layer in module.layers]
        else:
            found = [module.implicit_codebook if hasattr(module, "implicit_codebook") else module.codebook]
        return [table.detach().float().cpu().numpy().copy() for table in found]
