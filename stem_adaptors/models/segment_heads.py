"""Heads that give each place of a plane a class, from the tokens of some blocks of a vision transformer.

Shapes: B samples, E width of the transformer, D channels of the pyramid, H x W tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LinearHead", "PyramidHead", "pyramid_blocks"]

BINS = (1, 2, 3, 6)
"""Cells a side into which the coarsest level is pooled (PSPNet, Zhao et al. 2017)."""
NORM_CHANNELS = 8
"""Channels of a group that is normed together: unlike batch norm, this depends on no other sample."""


class LinearHead(nn.Module):
    """One linear layer on each token."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return logits [B, C, H, W] of the last of the levels [B, E, H, W]."""
        logits_BHWC: Tensor = self.classify(levels[-1].movedim(1, -1))
        return logits_BHWC.movedim(-1, 1)


class PyramidHead(nn.Module):
    """UPerNet (Xiao et al. 2018) on four blocks of a plain transformer, at 4, 2, 1 and 1/2 of its resolution (BEiT, Bao et al. 2022).

    The coarsest level is pooled into cells; each level gets the one above it; all levels together are classified at the finest one.
    """

    def __init__(self, width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.rescale = nn.ModuleList(
            [
                nn.Sequential(nn.ConvTranspose2d(width, channels, 2, 2), nn.GELU(), nn.ConvTranspose2d(channels, channels, 2, 2)),
                nn.ConvTranspose2d(width, channels, 2, 2),
                nn.Conv2d(width, channels, 1),
                nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(width, channels, 1)),
            ]
        )
        self.pooled = nn.ModuleList(_convolution(channels, channels, 1) for _ in BINS)
        self.joined = _convolution(channels * (1 + len(BINS)), channels, 3)
        self.smooth = nn.ModuleList(_convolution(channels, channels, 3) for _ in range(3))
        self.fuse = _convolution(4 * channels, channels, 3)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return logits [B, C, 4 H, 4 W] of four levels [B, E, H, W], the first block first."""
        *fine, coarse_BDHW = [rescale(level) for rescale, level in zip(self.rescale, levels, strict=True)]
        cells = [conv(F.adaptive_avg_pool2d(coarse_BDHW, bins)) for conv, bins in zip(self.pooled, BINS, strict=True)]
        found = [self.joined(torch.cat([coarse_BDHW, *(_resized(cell, coarse_BDHW) for cell in cells)], dim=1))]
        for level in reversed(fine):
            found.append(level + _resized(found[-1], level))
        finest = found[-1]
        smooth = [found[0], *(conv(level) for conv, level in zip(self.smooth, found[1:], strict=True))]
        logits_BCHW: Tensor = self.classify(self.fuse(torch.cat([_resized(level, finest) for level in smooth], dim=1)))
        return logits_BCHW


def pyramid_blocks(depth: int) -> tuple[int, ...]:
    """Return the numbers, from 0 on, of the four blocks that a pyramid reads: the ends of the quarters of the transformer."""
    return tuple(max(0, round(depth * quarter / 4) - 1) for quarter in (1, 2, 3, 4))


def _convolution(channels: int, out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False), nn.GroupNorm(out // NORM_CHANNELS, out), nn.GELU()
    )


def _resized(x_BDHW: Tensor, like_BDHW: Tensor) -> Tensor:
    size = (like_BDHW.shape[2], like_BDHW.shape[3])
    return x_BDHW if tuple(x_BDHW.shape[2:]) == size else F.interpolate(x_BDHW, size, mode="bilinear", align_corners=False)
