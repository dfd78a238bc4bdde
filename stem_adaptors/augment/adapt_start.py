"""The first weights of a fit: cells are code vectors, and the heads look up the nearest codes, so that a fit begins where moving the grid
of code vectors ends. In a mirror a code vector becomes that of the mirrored image, by least squares over some images. The transformers
begin as torch begins them; what reads them begins with zeros.

Shapes: B images, L sites, Q ids per site, R sample rows, D channels of a code vector, E width, K codes of a level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter

__all__ = ["start_from_codes", "start_with_mirror"]

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
    for level, (head, of_codes) in enumerate(zip(adapter.heads, adapter.beside_heads, strict=True)):
        code_KD = adapter.codes(level)
        compared_KD = F.normalize(code_KD, dim=1) if adapter.metric == "cosine" else code_KD
        own = slice(start, start + code_KD.shape[1]) if adapter.concat else slice(None)
        sharp = SHARPNESS / _neighbour(compared_KD)
        offset_K = compared_KD.square().sum(1) / 2 if adapter.metric not in ("cosine", "dot") else 0.0
        weight_KD = torch.zeros_like(of_codes.weight)
        weight_KD[:, own] = sharp * compared_KD * std_D[own]
        of_codes.weight.copy_(weight_KD)
        _set(head, torch.zeros_like(head.weight), sharp * (compared_KD @ mean_D[own] - offset_K))
        start += code_KD.shape[1] if adapter.concat else 0
    if reverse.before is not None and not adapter.concat:
        # A head is linear in what the levels before it left of the vector.
        reverse.before.weight[width:] = -same_DD / std_D


@torch.no_grad()
def start_with_mirror(adapter: TokenAdapter, ids_BLQ: Tensor, mirrored_BLQ: Tensor) -> None:
    """Let the reverse network of a started fit mirror code vectors: `mirrored_BLQ` are the ids of the mirrored images.

    The map's first entry is 1 for an upright image and -1 for a mirrored one, which chooses between no change and the change of a mirror.
    """
    beside, of_cells = adapter.reverse.beside, adapter.conversion.beside
    if beside is None or of_cells is None or of_cells.bias is None or beside.bias is None:
        return
    # The cells of a site all begin as its standardised vector.
    rows = []
    for ids in (ids_BLQ, mirrored_BLQ):
        x_BLD = adapter.vectors(ids) * of_cells.weight[:, :, 0, 0].diagonal() + of_cells.bias
        rows.append(x_BLD.reshape(len(x_BLD), *adapter.grid, -1))
    before_RD, after_RD = rows[0].flip(2).flatten(0, 2).double(), rows[1].flatten(0, 2).double()
    channels = before_RD.shape[1]
    known_RD = torch.cat([before_RD, torch.ones_like(before_RD[:, :1])], dim=1)
    ridge_DD = 1e-4 * len(known_RD) * torch.eye(channels + 1, dtype=torch.float64, device=known_RD.device)
    found_DD = torch.linalg.solve(known_RD.T @ known_RD + ridge_DD, known_RD.T @ after_RD).float()
    mirror_DD, shift_D = found_DD[:channels].T, found_DD[channels]
    same_DD = torch.eye(channels, device=mirror_DD.device)
    for feature, sign in ((0, 1.0), (1, -1.0)):
        own = slice(feature * channels, (feature + 1) * channels)
        beside.weight[own] = ((same_DD + sign * mirror_DD) / 8)[:, :, None, None]
        beside.bias[own] = sign * shift_D / 2


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
