"""Augmentations of embeddings other than crops: noise, channel statistics, dropped sites, mixing of samples.

Every tensor is [B, D, sites]: an image x_BDHW, a video B D T H W (operations on a grid treat all frames alike), a sequence B D L.
Functions that end in `_` write into x; x must be the caller's own tensor. All maths is float32; half-precision x is widened where a sum
runs over sites. `hit_B` is True in the samples that an operation changes; None means all.

Samples are mixed within groups. Sample i belongs to group i mod G, so a rank that takes every n-th sample of a batch has whole groups.

Shapes: B samples, G mix groups, D channels, H x W grid, R affected rows of a batch, C classes.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from tokenshards.stem_adaptors.augment.crops import pieces
from tokenshards.stem_adaptors.augment.keys import SampleKeys, all_rows
from tokenshards.stem_adaptors.augment.numbers import Numbers

__all__ = [
    "adapt_colour_",
    "add_noise_",
    "beta_quantiles",
    "cutmix_",
    "cutmix_box",
    "drop_sites_",
    "fill_boxes_",
    "inside_boxes",
    "mirrored",
    "mixup",
    "noise_pool",
    "partners",
]

COLOUR_EPSILON = 1e-5
POOL_VECTORS, POOL_STEP, MOST_CHANNELS = 1 << 14, 32, 1 << 12
_BETA_STEPS = 1 << 20


def add_noise_(
    x_BDHW: Tensor,
    numbers: Numbers,
    hit_B: Tensor | None,
    *,
    channel_std: float,
    std: float,
    mask: Tensor | None,
    pool: Tensor | None = None,
) -> Tensor:
    """Add noise to samples (Emb-Noise; SeiT, Park et al. 2023).

    N(0, channel_std^2) per sample and channel, the same at all sites, plus N(0, std^2) per value: numbers of the sample, or for each site
    one of the vectors of a `noise_pool`. `mask` [B, *sites] is True at sites that exist.
    """
    x_BLD = x_BDHW.movedim(1, -1)
    shape, ones = x_BLD.shape[1:], [1] * (x_BLD.ndim - 2)
    if all_rows(x_BDHW.device):
        channel_BD, value_BLD = numbers.normal("noise.channel", shape[-1]), _noise_values(numbers, shape, pool)
        noise_BLD = value_BLD * std + (channel_BD * channel_std).view(-1, *ones, shape[-1])
        if hit_B is not None:
            noise_BLD = noise_BLD * hit_B.view(-1, *ones, 1)
        if mask is not None:
            noise_BLD = noise_BLD * mask.unsqueeze(-1)
        x_BLD.add_(noise_BLD)
        return x_BDHW
    every_R = torch.arange(len(x_BDHW)) if hit_B is None else hit_B.nonzero().flatten()
    for piece in pieces(x_BDHW.shape):
        rows = every_R[piece]
        if not len(rows):
            break
        own = numbers[rows]
        level_RD = own.normal("noise.channel", shape[-1]) * channel_std
        noise_RLD = _noise_values(own, shape, pool)
        noise_RLD.mul_(std).add_(level_RD.view(len(rows), *ones, shape[-1]))
        if mask is not None:
            noise_RLD.mul_(mask[rows].unsqueeze(-1))
        x_BLD.index_add_(0, rows, noise_RLD.to(x_BLD.dtype))
    return x_BDHW


def _noise_values(numbers: Numbers, shape: torch.Size, pool: Tensor | None) -> Tensor:
    """Return a standard normal number for each value, [B, *sites, D]."""
    if pool is None:
        return numbers.normal("noise.value", math.prod(shape)).reshape(-1, *shape)
    vectors_KD = pool.unfold(0, shape[-1], POOL_STEP)[:POOL_VECTORS]
    places_BL = numbers.integers("noise.site", POOL_VECTORS, math.prod(shape[:-1]))
    return vectors_KD.index_select(0, places_BL.flatten()).view(-1, *shape)


@functools.cache
def noise_pool() -> Tensor:
    """Return the standard normal numbers that noise is taken from: POOL_VECTORS vectors, each POOL_STEP numbers after the one before.

    A site takes one of the vectors. That costs a CPU half of what a number for each value costs, and a GPU a sixteenth of the hashing.
    """
    return SampleKeys(0, 0, torch.zeros(1, dtype=torch.int64)).normal("noise pool", POOL_VECTORS * POOL_STEP + MOST_CHANNELS)[0].clone()


def drop_sites_(x_BDHW: Tensor, numbers: Numbers, share: float) -> Tensor:
    """Set the embedding of a `share` of the sites of every sample to zero, each site independently."""
    sites = x_BDHW.shape[2:]
    kept_BL = numbers.uniform("dropout", math.prod(sites)) >= share
    return x_BDHW.mul_(kept_BL.view(-1, 1, *sites))


def adapt_colour_(x_BDHW: Tensor, hit_B: Tensor | None, groups: int = 1, epsilon: float = COLOUR_EPSILON) -> Tensor:
    """Give samples the channel statistics of their partners (ColorAdapt; SeiT++, Lee et al. 2024).

    sd2 (x - mean1) / (sd1 + epsilon) + mean2, over the sites of a sample, with unbiased standard deviations.
    """
    x_BLD = x_BDHW.movedim(1, -1)
    x_BND = x_BLD.flatten(1, -2)
    if all_rows(x_BDHW.device) or hit_B is None:
        own_BND = x_BND.float()
        mean_B1D, sd_B1D = _statistics(own_BND)
        new_BND = (own_BND - mean_B1D) * (mirrored(sd_B1D, groups) / (sd_B1D + epsilon)) + mirrored(mean_B1D, groups)
        if hit_B is not None:
            new_BND = torch.where(hit_B[:, None, None], new_BND, own_BND)
        x_BLD.copy_(new_BND.view(x_BLD.shape))
        return x_BDHW
    rows = hit_B.nonzero().flatten()
    own_RND = x_BND[rows].float()
    mean_R1D, sd_R1D = _statistics(own_RND)
    other_mean_R1D, other_sd_R1D = _statistics(x_BND[partners(len(x_BND), groups, rows.device)[rows]].float())
    new_RND = (own_RND - mean_R1D) * (other_sd_R1D / (sd_R1D + epsilon)) + other_mean_R1D
    x_BLD[rows] = new_RND.view(len(rows), *x_BLD.shape[1:]).to(x_BLD.dtype)
    return x_BDHW


def _statistics(x_RND: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased standard deviation, each [R, 1, D]. Two passes are far faster than torch.std_mean over a middle dimension.

    The standard deviation is at least 1e-6: the square root has no derivative at zero, and a learned codebook needs the derivative.
    """
    mean_R1D = x_RND.mean(1, keepdim=True)
    variance_R1D = (x_RND - mean_R1D).square().sum(1, keepdim=True) / max(1, x_RND.shape[1] - 1)
    return mean_R1D, variance_R1D.clamp(min=1e-12).sqrt()


def partners(count: int, groups: int, device: torch.device) -> Tensor:
    """Return int64 [B]: the partner of each sample, which is the sample at the mirrored place of its group."""
    return torch.arange(count, device=device).view(-1, groups).flip(0).flatten()


def mirrored(x: Tensor, groups: int) -> Tensor:
    """Return x with every sample replaced by its partner."""
    # Targets of a pre-training have no class, so that the number of groups cannot be found from their elements.
    return x.view(len(x) // groups, groups, *x.shape[1:]).flip(0).flatten(0, 1)


def mixup(x_BDHW: Tensor, targets_BC: Tensor, lam_G: Tensor) -> tuple[Tensor, Tensor]:
    """Return lam x + (1 - lam) x', where x' are the partners, and targets mixed alike. `lam_G` holds one number for each group."""
    lam_B = lam_G.repeat(len(x_BDHW) // len(lam_G)).to(x_BDHW.dtype)
    mixed = torch.lerp(mirrored(x_BDHW, len(lam_G)), x_BDHW, lam_B.view(-1, *[1] * (x_BDHW.ndim - 1)))
    return mixed, _mix_targets(targets_BC, lam_G)


def cutmix_(x_BDHW: Tensor, targets_BC: Tensor, edges_G4: Tensor) -> tuple[Tensor, Tensor]:
    """Fill one box, the same in all samples of a group, from their partners (Token-CutMix; SeiT, Park et al. 2023).

    `edges_G4` come from `cutmix_box`. Targets mix by the share of sites really replaced.
    """
    height, width = x_BDHW.shape[-2:]
    top_G, left_G, bottom_G, right_G = edges_G4.unbind(1)
    kept_G = 1 - ((bottom_G - top_G) * (right_G - left_G)) / (height * width)
    return fill_boxes_(x_BDHW, edges_G4), _mix_targets(targets_BC, kept_G)


def fill_boxes_(x_BDHW: Tensor, edges_G4: Tensor) -> Tensor:
    """Fill the box of each group, in all its samples, from their partners. `edges_G4` come from `cutmix_box`."""
    return (_filled_by_mask if all_rows(x_BDHW.device) else _fill_slices_)(x_BDHW, edges_G4)


def _fill_slices_(x_BDHW: Tensor, edges_G4: Tensor) -> Tensor:
    """Fill the boxes by slices: touches only the boxes, but reads their bounds on the host."""
    edges = edges_G4.tolist()
    for group, (top, left, bottom, right) in enumerate(edges):
        if top >= bottom or left >= right:
            continue
        # With channels last, a row of the box is one contiguous piece of memory.
        box_BHWD = x_BDHW[group :: len(edges), ..., top:bottom, left:right].movedim(1, -1)
        box_BHWD.copy_(box_BHWD.flip(0))
    return x_BDHW


def _filled_by_mask(x_BDHW: Tensor, edges_G4: Tensor) -> Tensor:
    """Fill the boxes by a mask: reads no bounds on the host, so a GPU need not wait."""
    return torch.where(inside_boxes(x_BDHW.shape, edges_G4), mirrored(x_BDHW, len(edges_G4)), x_BDHW)


def inside_boxes(shape: torch.Size, edges_G4: Tensor) -> Tensor:
    """Return bool [B, 1, H, W] (of a video [B, 1, 1, H, W]): whether a site of embeddings of this shape lies in the box of its group."""
    height, width = shape[-2:]
    places_N = torch.arange(max(height, width), device=edges_G4.device)
    inside_G2N = (places_N >= edges_G4[:, :2, None]) & (places_N < edges_G4[:, 2:, None])
    inside_GHW = inside_G2N[:, 0, :height, None] & inside_G2N[:, 1, None, :width]
    inside_BHW = inside_GHW.repeat(shape[0] // len(edges_G4), 1, 1)
    return inside_BHW.view(-1, *[1] * (len(shape) - 3), height, width)


def cutmix_box(numbers: Numbers, grid: tuple[int, int], sides_G2: Tensor) -> Tensor:
    """Return top, left, bottom, right of the box of each group, int64 [G, 4], clipped to the grid. The key is the group's first sample.

    `sides_G2`: height and width of the boxes before they are clipped, int64. Their centres are uniform.
    """
    own = numbers[: len(sides_G2)]
    centres = [own.integers(f"cutmix.{name}", side) for name, side in zip("yx", grid, strict=True)]
    start_G2 = torch.cat(centres, dim=1) - sides_G2 // 2
    stop_G2 = start_G2 + sides_G2
    stops = [stop_G2[:, axis : axis + 1].clamp(max=side) for axis, side in enumerate(grid)]
    return torch.cat([start_G2.clamp(min=0), *stops], dim=1)


def _mix_targets(targets_BC: Tensor, lam_G: Tensor) -> Tensor:
    lam_B1 = lam_G.repeat(len(targets_BC) // len(lam_G))[:, None].to(targets_BC.dtype)
    return torch.lerp(mirrored(targets_BC, len(lam_G)), targets_BC, lam_B1)


@functools.cache
def beta_quantiles(alpha: float) -> Tensor:
    """Return float64 [65536] quantiles of Beta(alpha, alpha) at the midpoints (i + 0.5) / 65536.

    With x = t^(1/alpha) / 2 the density of the lower half becomes (2 - t^(1/alpha))^(alpha - 1) on 0 < t < 1, bounded for every alpha.
    """
    t = np.linspace(0.0, 1.0, _BETA_STEPS + 1)
    x = t ** (1 / alpha) / 2
    density = (2 - 2 * x) ** (alpha - 1)
    cumulated = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    lower = np.interp((np.arange(1 << 15) + 0.5) / (1 << 15), cumulated / cumulated[-1], x)
    return torch.from_numpy(np.concatenate([lower, 1 - lower[::-1]]))
