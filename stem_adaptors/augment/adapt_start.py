"""The first weights of a fit: cells are code vectors, and the heads look up the nearest codes, so that a fit begins where moving the grid
of code vectors ends. The transformers begin as torch begins them, with last layers of zeros.

Shapes: R sample rows, D channels of a code vector, E width, K codes of a level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter

__all__ = ["start_from_codes"]

SHARPNESS = 2.0
"""Logits between a code and its neighbour."""


@torch.no_grad()
def start_from_codes(adapter: TokenAdapter, sample_RD: Tensor) -> None:
    """Give networks with a skip their first weights. `sample_RD`: code vectors of sites, as `adapter.vectors` returns them.

    Cells are standardised, so that the zeros outside of the image are a mean code vector.
    """
    mean_D, std_D = sample_RD.mean(0), sample_RD.std(0, correction=0)
    std_D = torch.where(std_D > 1e-6 * std_D.max(), std_D, torch.ones_like(std_D))
    conversion, reverse, width = adapter.conversion, adapter.reverse, adapter.sizes.width
    conversion.enter.weight.div_(std_D)
    conversion.enter.bias.sub_(conversion.enter.weight @ mean_D)
    same_DD = torch.eye(len(mean_D), device=mean_D.device)
    if conversion.beside is None or reverse.beside is None:
        return
    _set(conversion.leave, torch.zeros_like(conversion.leave.weight))
    _set(conversion.beside, (same_DD / std_D[:, None])[:, :, None, None].expand_as(conversion.beside.weight), -mean_D / std_D)
    _set(reverse.beside, torch.zeros_like(reverse.beside.weight))
    reverse.beside.weight[: len(same_DD)] = same_DD[:, :, None, None] / 4
    if reverse.map is not None:
        nn.init.zeros_(reverse.map.weight)
    start = 0
    for level, head in enumerate(adapter.heads):
        code_KD = adapter.codes(level)
        compared_KD = F.normalize(code_KD, dim=1) if adapter.metric == "cosine" else code_KD
        own = slice(start, start + code_KD.shape[1]) if adapter.concat else slice(None)
        sharp = SHARPNESS / _neighbour(compared_KD)
        offset_K = compared_KD.square().sum(1) / 2 if adapter.metric not in ("cosine", "dot") else 0.0
        weight_KC = torch.zeros_like(head.weight)
        weight_KC[:, width:][:, own] = sharp * compared_KD * std_D[own]
        _set(head, weight_KC, sharp * (compared_KD @ mean_D[own] - offset_K))
        start += code_KD.shape[1] if adapter.concat else 0
    if reverse.before is not None and not adapter.concat:
        # A head is linear in what the levels before it left of the vector.
        reverse.before.weight[width:] = -same_DD / std_D


def _set(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, weight: Tensor, bias: Tensor | None = None) -> None:
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)


def _neighbour(code_KD: Tensor) -> Tensor:
    """Return the mean squared distance of a code to the nearest other code."""
    if len(code_KD) < 2:
        return torch.ones((), device=code_KD.device)
    some_KD = code_KD[:1024]
    distances_KK = torch.cdist(some_KD, code_KD).square()
    distances_KK.fill_diagonal_(torch.inf)
    return distances_KK.min(1).values.mean().clamp_min(1e-12)
