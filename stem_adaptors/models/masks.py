"""Which patches of each sample are hidden: dropped from the encoder, or masked in it, by the layout.

A patch is a token of the stem. Hidden patches are those of the lowest noise; the lowest of all are dropped. So one number for each
patch decides, and the noise is arranged by the layout:

- a grid hides single patches; a video hides the same places in all frames (tubes);
- a sequence hides spans of neighbours;
- a pyramid hides a coarse patch only after all finer ones below it, which would give it away.

Shapes: B samples, N patches of the stem, K patches that the encoder sees, S spans, R quantiles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokenshards.pipeline.shards.spec import Layout
from tokenshards.stem_adaptors.augment.numbers import Draw, Numbers
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models.stems import PyramidStem, Stem

__all__ = ["MaskDraws", "Masks", "ratio_quantiles"]

_QUANTILES = 1 << 16
_SLACK = 1e-4
"""What a count of patches may exceed a whole number by before it is rounded up: 0.6 of 50 patches are 30, also in float32."""


class Masks(NamedTuple):
    """The hidden patches of a batch."""

    kept_BK: Tensor
    """int64 places of the patches that the encoder sees."""
    masked_BN: Tensor
    """True at hidden patches, dropped or masked."""
    predicted_BN: Tensor
    """True at the hidden patches that are predicted: all of them, or a share."""
    real_BN: Tensor | None
    """True at patches that exist; None where all do."""


class MaskDraws(nn.Module):
    """Draws masks from the numbers of samples. `layout` and `stem` say what a patch is."""

    ratios_R: Tensor
    parents_N: Tensor

    def __init__(self, config: MaskConfig, layout: Layout, stem: Stem) -> None:
        super().__init__()
        self.config, self.patches, self.kind = config, stem.tokens, layout.kind
        self.tubes = stem.grid[0] if layout.kind == "video" else 1
        self.kept = self.patches - _rounded_up(self.patches * config.drop_share)
        """K"""
        self.register_buffer("ratios_R", ratio_quantiles(config), persistent=False)
        parents = [parents_of(stem)] if isinstance(stem, PyramidStem) else [torch.zeros(0, dtype=torch.int64)]
        self.register_buffer("parents_N", parents[0], persistent=False)
        self._scales = stem.scale_tokens if isinstance(stem, PyramidStem) else ()

    def draws(self) -> tuple[Draw, ...]:
        """Return the numbers that the masks of a sample take."""
        ratio = Draw("mask.ratio", "integers")
        chosen = () if self.config.predict_share == 1 else (Draw("mask.predicted", count=self.patches),)
        if self.kind == "sequence":
            spans = 1 + math.ceil(self.patches / self.config.span_sites)
            return Draw("mask.noise", count=spans), ratio, Draw("mask.start", "integers"), *chosen
        return Draw("mask.noise", count=self.patches // self.tubes), ratio, *chosen

    def forward(self, numbers: Numbers, real_BN: Tensor | None = None, *, ratio: float | None = None) -> Masks:
        """Return the masks of the samples. `real_BN`: patches that exist. `ratio`: the share of all samples, in place of a random one."""
        noise_BN = self._noise(numbers)
        samples = len(noise_BN)
        if real_BN is None:
            count_B = torch.full((samples,), self.patches, device=noise_BN.device)
        else:
            count_B = real_BN.sum(1)
            noise_BN = noise_BN.masked_fill(~real_BN, 2.0)  # after all real patches
        if ratio is None:
            ratio_B = self.ratios_R[numbers.integers("mask.ratio", len(self.ratios_R))[:, 0]]
        else:
            ratio_B = torch.full((samples,), ratio, device=noise_BN.device)
        hidden_B = (count_B * ratio_B - _SLACK).ceil().long().clamp(min=1)
        dropped_B = (count_B * self.config.drop_share - _SLACK).ceil().long().clamp(min=0)
        # Among equal noise the finer, later patch of a pyramid comes first.
        order_BN = self.patches - 1 - noise_BN.flip(1).argsort(dim=1, stable=True)
        ranks_BN = torch.empty_like(order_BN).scatter_(1, order_BN, torch.arange(self.patches, device=order_BN.device).expand_as(order_BN))
        kept_BK = order_BN.gather(1, dropped_B[:, None] + torch.arange(self.kept, device=order_BN.device))
        masked_BN = ranks_BN < hidden_B[:, None]
        if ratio is not None or self.config.predict_share == 1:  # a measurement predicts all
            return Masks(kept_BK, masked_BN, masked_BN, real_BN)
        lot_BN = numbers.uniform("mask.predicted", self.patches).masked_fill(~masked_BN, 2.0)
        wanted_B = (hidden_B * self.config.predict_share - _SLACK).ceil().long().clamp(min=1)
        return Masks(kept_BK, masked_BN, lot_BN.argsort(dim=1, stable=True).argsort(dim=1) < wanted_B[:, None], real_BN)

    def _noise(self, numbers: Numbers) -> Tensor:
        """Return float32 [B, N]; patches of the lowest noise are hidden."""
        if self.kind == "sequence":
            length = self.config.span_sites
            start_B1 = numbers.integers("mask.start", length)
            spans_BN = (torch.arange(self.patches, device=start_B1.device) + start_B1) // length
            return numbers.uniform("mask.noise", 1 + math.ceil(self.patches / length)).gather(1, spans_BN)
        noise_BN = numbers.uniform("mask.noise", self.patches // self.tubes)
        if self.tubes > 1:
            return noise_BN.repeat(1, self.tubes)
        return self._from_fine_to_coarse(noise_BN) if self._scales else noise_BN

    def _from_fine_to_coarse(self, noise_BN: Tensor) -> Tensor:
        """Give each coarse patch the largest noise of those below it."""
        parts = list(torch.split(noise_BN, list(self._scales), dim=1))
        parents = torch.split(self.parents_N, list(self._scales))
        for scale in range(len(parts) - 1, 0, -1):
            places_BN = parents[scale].expand(len(noise_BN), -1)
            parts[scale - 1] = parts[scale - 1].scatter_reduce(1, places_BN, parts[scale], "amax")
        return torch.cat(parts, dim=1)


def _rounded_up(count: float) -> int:
    return max(0, math.ceil(count - _SLACK))


def ratio_quantiles(config: MaskConfig) -> Tensor:
    """Return float32 quantiles at the midpoints (i + 0.5) / 65536 of the normal distribution that ratio_min and ratio_max cut off."""
    if config.ratio_std == 0:
        return torch.tensor([config.ratio_mean])
    edges_2 = (torch.tensor([config.ratio_min, config.ratio_max], dtype=torch.float64) - config.ratio_mean) / config.ratio_std
    low, high = torch.special.ndtr(edges_2)
    middles_R = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    ratios_R: Tensor = config.ratio_mean + config.ratio_std * torch.special.ndtri(low + (high - low) * middles_R)
    return ratios_R.clamp(config.ratio_min, config.ratio_max).float()


def parents_of(stem: PyramidStem) -> Tensor:
    """Return int64 [N]: the patch of the next coarser scale, counted within that scale, which holds the centre of each patch."""
    parts = [torch.zeros(stem.scale_tokens[0], dtype=torch.int64)]
    for (coarse_height, coarse_width), (height, width) in zip(stem.scale_grids, stem.scale_grids[1:], strict=False):
        rows_H = (torch.arange(height) * 2 + 1) * coarse_height // (2 * height)
        columns_W = (torch.arange(width) * 2 + 1) * coarse_width // (2 * width)
        parts.append((rows_H[:, None] * coarse_width + columns_W).flatten())
    return torch.cat(parts)
