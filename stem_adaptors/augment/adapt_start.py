"""The first weights of a fit: the two networks begin as a linear map that moves code vectors, and looks up the nearest codes.

Without it some thousand steps pass before the networks know what a code is; with it they begin where moving the grid directly ends. The
code vectors, standardised, enter the network in directions in which the positions hardly reach, so that the norm hardly changes them.

Shapes: R sample rows, D channels of a code vector, E width, K codes of a level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter

__all__ = ["start_from_codes"]

LOUDNESS = 0.25
"""Scale of the standardised code vectors beside the positions."""
SHARPNESS = 2.0
"""Logits between a code and its neighbour."""


@torch.no_grad()
def start_from_codes(adapter: TokenAdapter, sample_RD: Tensor) -> None:
    """Give the networks their first weights. `sample_RD`: code vectors of sites, as `adapter.vectors` returns them.

    With more channels than the width has room for, only the norms of the first layer are set, and all else stays as torch begins it.
    """
    mean_D, std_D = sample_RD.mean(0), sample_RD.std(0, correction=0)
    std_D = torch.where(std_D > 1e-6 * std_D.max(), std_D, torch.ones_like(std_D))
    conversion, reverse = adapter.conversion, adapter.reverse
    channels, width = len(mean_D), adapter.sizes.width
    if channels > width // 2:
        conversion.enter.weight.div_(std_D)
        conversion.enter.bias.sub_(conversion.enter.weight @ mean_D)
        return
    rows_RD = (sample_RD - mean_D) / std_D
    for block in (conversion.block, reverse.block):
        for layer in (block.out, block.fc2):
            nn.init.zeros_(layer.weight)
            _zero_bias(layer)
    inward_ED, outward_DE = _directions(conversion.positions, rows_RD)
    conversion.enter.weight.copy_(inward_ED / std_D)
    conversion.enter.bias.copy_(-(inward_ED / std_D) @ mean_D)
    conversion.leave.weight.copy_(outward_DE.T[:, :, None, None].expand_as(conversion.leave.weight))
    _zero_bias(conversion.leave)
    inward_ED, outward_DE = _directions(reverse.positions, rows_RD)
    reverse.enter.weight.copy_(inward_ED[:, :, None, None].expand_as(reverse.enter.weight) / 4)
    _zero_bias(reverse.enter)
    start = 0
    for level, head in enumerate(adapter.heads):
        code_KD = adapter.codes(level)
        compared_KD = F.normalize(code_KD, dim=1) if adapter.metric == "cosine" else code_KD
        own = slice(start, start + code_KD.shape[1]) if adapter.concat else slice(None)
        sharp = SHARPNESS / _neighbour(compared_KD)
        head.weight.copy_(sharp * (compared_KD * std_D[own]) @ outward_DE[own])
        offset_K = compared_KD.square().sum(1) / 2 if adapter.metric not in ("cosine", "dot") else 0.0
        head.bias.copy_(sharp * (compared_KD @ mean_D[own] - offset_K))
        start += code_KD.shape[1] if adapter.concat else 0
    if reverse.before is not None and not adapter.concat:
        # A head is linear in what the levels before it left of the vector; `inward` undoes `outward` after the norm.
        reverse.before.weight.copy_(-torch.linalg.pinv(outward_DE) / std_D)


def _directions(positions_LE: Tensor, rows_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Return [E, D] that brings standardised vectors beside the positions, and [D, E] that reads them after the norm."""
    channels = rows_RD.shape[1]
    ones_1E = torch.ones_like(positions_LE[:1])
    _, _, directions = torch.linalg.svd(torch.cat([positions_LE, ones_1E * len(positions_LE) ** 0.5]), full_matrices=True)
    quiet_DE = directions[-channels:]
    inward_ED = LOUDNESS * quiet_DE.T
    some = rows_RD[:: max(1, len(rows_RD) // 4096)]
    entered_RE = some @ inward_ED.T + positions_LE[torch.arange(len(some), device=some.device) % len(positions_LE)]
    scale = entered_RE.std(1, correction=0).mean()
    return inward_ED, quiet_DE * (scale / LOUDNESS)


def _zero_bias(layer: nn.Module) -> None:
    for name, parameter in layer.named_parameters():
        if name == "bias":
            nn.init.zeros_(parameter)


def _neighbour(code_KD: Tensor) -> Tensor:
    """Return the mean squared distance of a code to the nearest other code."""
    distances_KK = torch.cdist(code_KD[:1024], code_KD).square()
    distances_KK[torch.arange(len(distances_KK)), torch.arange(len(distances_KK))] = torch.inf
    return distances_KK.min(1).values.mean().clamp_min(1e-12) if len(code_KD) > 1 else torch.ones((), device=code_KD.device)
