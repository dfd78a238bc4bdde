"""Augmentations of embeddings: crops, noise, mixing of samples, channel statistics, dropped sites.

Every tensor is [B, D, sites]: an image x_BDHW, a video B D T H W (operations on a grid treat all frames alike), a sequence B D L. The
memory layout is free: channel-last is the fastest, and crops return it. Functions that end in `_` write into x; x must be the caller's
own tensor. All maths is float32; half-precision x is widened where a sum runs over sites.

Samples are mixed within groups. Sample i belongs to group i mod G, so a rank that takes every n-th sample of a batch has whole groups.

Shapes: B samples, G mix groups, D channels, H x W grid, O output side, R affected rows of a batch, C classes, N numbers per sample.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenshards.pipeline.devices import wide_float
from tokenshards.stem_adaptors.augment.keys import SampleKeys, affected_rows

__all__ = [
    "add_noise_",
    "adapt_colour_",
    "beta_quantiles",
    "bicubic_taps",
    "centre_crop",
    "crop_boxes",
    "cutmix_",
    "draw_lambda",
    "drop_sites_",
    "mixup",
    "partners",
    "random_crop",
    "random_resized_crop",
    "resample",
]

COLOUR_EPSILON = 1e-5
CROP_TRIES = 10
PIECE_BYTES = 4 << 20
"""Bytes of embeddings that one pass works on, on a CPU."""
_BETA_STEPS = 1 << 20


def random_resized_crop(x_BDHW: Tensor, keys: SampleKeys, size: tuple[int, int], *, scale_min: float, ratio_max: float) -> Tensor:
    """Cut a random box out of each sample and resample it to `size`, bicubic (Token-RRC; SeiT, Park et al. 2023)."""
    return resample(x_BDHW, crop_boxes(keys, x_BDHW.shape[-2:], scale_min=scale_min, ratio_max=ratio_max), size)


def crop_boxes(keys: SampleKeys, grid: tuple[int, ...], *, scale_min: float, ratio_max: float) -> Tensor:
    """Return int64 [B, 4] = top, left, height, width, drawn as torchvision's RandomResizedCrop draws them.

    The area share is U(scale_min, 1); the log of the aspect ratio is U(-log ratio_max, log ratio_max); sides are rounded. The first of
    CROP_TRIES boxes that fits is placed uniformly. Without one, the box is the largest central one of an allowed ratio.
    """
    height, width = grid
    wide = wide_float(keys.positions_B.device)
    draws_BT2 = keys.uniform("crop.box", 2 * CROP_TRIES).to(wide).view(len(keys), CROP_TRIES, 2)
    area_BT = (scale_min + (1 - scale_min) * draws_BT2[..., 0]) * (height * width)
    ratio_BT = ((2 * draws_BT2[..., 1] - 1) * math.log(ratio_max)).exp()
    tall_BT, wide_BT = (area_BT / ratio_BT).sqrt().round().long(), (area_BT * ratio_BT).sqrt().round().long()
    fits_BT = (tall_BT > 0) & (tall_BT <= height) & (wide_BT > 0) & (wide_BT <= width)
    first_B1, found_B1 = fits_BT.int().argmax(1, keepdim=True), fits_BT.any(1, keepdim=True)
    axes = []
    for name, side, sides_BT, fallback in zip("yx", grid, (tall_BT, wide_BT), _central_sides(height, width, ratio_max), strict=True):
        length_B1 = torch.where(found_B1, sides_BT.gather(1, first_B1), fallback)
        start_B1 = torch.where(found_B1, keys.integers(f"crop.{name}", side - length_B1 + 1), (side - fallback) // 2)
        axes.append((start_B1, length_B1))
    (top_B1, tall_B1), (left_B1, wide_B1) = axes
    return torch.cat([top_B1, left_B1, tall_B1, wide_B1], dim=1)


def _central_sides(height: int, width: int, ratio_max: float) -> tuple[int, int]:
    if width / height > ratio_max:
        return height, round(height * ratio_max)
    if height / width > ratio_max:
        return round(width * ratio_max), width
    return height, width


def resample(x_BDHW: Tensor, boxes_B4: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a box (top, left, height, width) of each sample to `size`.

    Equal to `F.interpolate(crop, size, mode="bicubic")` sample by sample. A row of a sample's interpolation matrix has four entries, so
    each output site is a weighted sum of four input sites. On a CPU this is three times as fast as the batched dense product, and a
    sample's result does not depend on the other samples.
    """
    x_BTHWD = x_BDHW.movedim(1, -1)
    *lead, height, width, channels = x_BTHWD.shape
    down_BO4, down_weights_BO4 = bicubic_taps(boxes_B4[:, 0], boxes_B4[:, 2], size[0])
    across_BO4, across_weights_BO4 = bicubic_taps(boxes_B4[:, 1], boxes_B4[:, 3], size[1])
    out_BTHWD = torch.empty(*lead, *size, channels, dtype=x_BDHW.dtype, device=x_BDHW.device)
    for piece in _pieces(x_BDHW):
        # Rows first: they are wide, so few bags suffice, and rows outside of the boxes are never read.
        planes = len(x_BTHWD[piece]) * math.prod(lead[1:])
        x_NE = x_BTHWD[piece].float().reshape(-1, width * channels)
        x_NE = _weighted_bags(x_NE, down_BO4[piece], down_weights_BO4[piece], lines=planes, step=height)
        x_ND = _weighted_bags(x_NE.view(-1, channels), across_BO4[piece], across_weights_BO4[piece], lines=planes * size[0], step=width)
        out_BTHWD[piece] = x_ND.view(-1, *out_BTHWD.shape[1:])
    return out_BTHWD.movedim(-1, 1)


def _pieces(x: Tensor) -> list[slice]:
    """Return the slices of the batch to work on: the whole batch on a GPU; on a CPU pieces that stay in the cache."""
    rows = len(x)
    if x.device.type == "cpu":
        rows = max(1, rows * PIECE_BYTES // max(1, 4 * x.numel()))
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


def _weighted_bags(x_ND: Tensor, taps_BO4: Tensor, weights_BO4: Tensor, *, lines: int, step: int) -> Tensor:
    """Return weighted sums of four rows of x, [lines * O, D]. Line i starts at row i * step; all lines of a sample share their taps."""
    starts_BN11 = (torch.arange(lines, dtype=torch.int32, device=x_ND.device) * step).view(len(taps_BO4), -1, 1, 1)
    rows_N4 = (taps_BO4[:, None] + starts_BN11).view(-1, 4)
    weights_N4 = weights_BO4[:, None].expand(-1, starts_BN11.shape[1], -1, -1).reshape(-1, 4)
    return F.embedding_bag(rows_N4, x_ND, per_sample_weights=weights_N4, mode="sum")


def bicubic_taps(start_B: Tensor, length_B: Tensor, out: int) -> tuple[Tensor, Tensor]:
    """Return the sites, int32 [B, out, 4], and weights, float32 [B, out, 4], that make `out` sites of start .. start + length - 1.

    Cubic convolution (R. Keys, 1981) with a = -0.75, centres at half sites, indices clamped to the box: the same as `F.interpolate` without
    align_corners and antialias. The weights of a site sum to 1.
    """
    places_O = torch.arange(out, device=start_B.device) + 0.5
    source_BO1 = (places_O * (length_B[:, None].float() / out) - 0.5)[:, :, None]
    floor_BO1 = source_BO1.floor()
    steps_4 = torch.arange(-1, 3, device=start_B.device)
    taps_BO4 = (floor_BO1.long() + steps_4).clamp(min=0).minimum(length_B[:, None, None] - 1) + start_B[:, None, None]
    return taps_BO4.int(), _cubic((source_BO1 - floor_BO1 - steps_4).abs())


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)


def random_crop(x_BDHW: Tensor, keys: SampleKeys, size: tuple[int, int]) -> Tensor:
    """Cut a window of `size` at a uniform place out of each sample (SeiT's option `--src`)."""
    x_BHWD = x_BDHW.movedim(1, -1)
    height, width = x_BDHW.shape[-2:]
    top_B1, left_B1 = keys.integers("crop.y", height - size[0] + 1), keys.integers("crop.x", width - size[1] + 1)
    rows_BH1 = (top_B1 + torch.arange(size[0], device=x_BDHW.device))[:, :, None]
    columns_B1W = (left_B1 + torch.arange(size[1], device=x_BDHW.device))[:, None, :]
    samples_B11 = torch.arange(len(x_BDHW), device=x_BDHW.device)[:, None, None]
    if x_BDHW.ndim == 4:
        return x_BHWD[samples_B11, rows_BH1, columns_B1W].movedim(-1, 1)
    # Advanced indices that do not stand side by side put their dimensions first: B H W T D.
    return x_BHWD[samples_B11, :, rows_BH1, columns_B1W].movedim(-2, 1).movedim(-1, 1)


def centre_crop(x_BDHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a view of the central window, at offset (in - out) // 2, as in SeiT (Park et al. 2023)."""
    top, left = (x_BDHW.shape[-2] - size[0]) // 2, (x_BDHW.shape[-1] - size[1]) // 2
    return x_BDHW[..., top : top + size[0], left : left + size[1]]


def add_noise_(x_BDHW: Tensor, keys: SampleKeys, *, share: float, channel_std: float, std: float, mask: Tensor | None = None) -> Tensor:
    """Add noise to a `share` of the samples (Emb-Noise; SeiT, Park et al. 2023).

    N(0, channel_std^2) per sample and channel, the same at all sites, plus N(0, std^2) per value. `mask` [B, *sites] is
    True at sites that exist.
    """
    x_BLD = x_BDHW.movedim(1, -1)
    shape, ones = x_BLD.shape[1:], [1] * (x_BLD.ndim - 2)
    hit_B = keys.chosen("noise", share)
    level_BD = keys.normal("noise.channel", shape[-1]) * (hit_B[:, None] * channel_std)
    every_R = affected_rows(hit_B)
    for piece in _pieces(x_BDHW[: len(every_R)]):
        rows = every_R[piece]
        hit_R1 = hit_B[rows, None].float()
        noise_RLD = keys[rows].normal("noise.value", math.prod(shape)).view(len(rows), *shape)
        noise_RLD.mul_((hit_R1 * std).view(-1, *ones, 1)).add_(level_BD[rows].view(len(rows), *ones, shape[-1]))
        if mask is not None:
            noise_RLD.mul_(mask[rows].unsqueeze(-1))
        x_BLD.index_add_(0, rows, noise_RLD.to(x_BLD.dtype))
    return x_BDHW


def drop_sites_(x_BDHW: Tensor, keys: SampleKeys, share: float) -> Tensor:
    """Set the embedding of a `share` of the sites of every sample to zero, each site independently."""
    sites = x_BDHW.shape[2:]
    kept_BL = keys.uniform("dropout", math.prod(sites)) >= share
    return x_BDHW.mul_(kept_BL.view(-1, 1, *sites))


def adapt_colour_(x_BDHW: Tensor, hit_B: Tensor, groups: int = 1, epsilon: float = COLOUR_EPSILON) -> Tensor:
    """Give the samples in `hit_B` the channel statistics of their partners (ColorAdapt; SeiT++, Lee et al. 2024).

    sd2 (x - mean1) / (sd1 + epsilon) + mean2, over the sites of a sample, with unbiased standard deviations.
    """
    x_BND = x_BDHW.movedim(1, -1).flatten(1, -2)
    rows = affected_rows(hit_B)
    own_RND = x_BND[rows].float()
    mean_R1D, sd_R1D = _statistics(own_RND)
    other_mean_R1D, other_sd_R1D = _statistics(x_BND[partners(len(x_BND), groups, rows.device)[rows]].float())
    new_RND = torch.where(hit_B[rows, None, None], (own_RND - mean_R1D) * (other_sd_R1D / (sd_R1D + epsilon)) + other_mean_R1D, own_RND)
    x_BLD = x_BDHW.movedim(1, -1)
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


def _mirrored(x: Tensor, groups: int) -> Tensor:
    """Return x with every sample replaced by its partner."""
    return x.view(-1, groups, *x.shape[1:]).flip(0).flatten(0, 1)


def mixup(x_BDHW: Tensor, targets_BC: Tensor, lam_G: Tensor) -> tuple[Tensor, Tensor]:
    """Return lam x + (1 - lam) x', where x' are the partners, and targets mixed alike. `lam_G` holds one number for each group."""
    lam_B = lam_G.repeat(len(x_BDHW) // len(lam_G)).to(x_BDHW.dtype)
    mixed = torch.lerp(_mirrored(x_BDHW, len(lam_G)), x_BDHW, lam_B.view(-1, *[1] * (x_BDHW.ndim - 1)))
    return mixed, _mix_targets(targets_BC, lam_G)


def cutmix_(x_BDHW: Tensor, targets_BC: Tensor, keys: SampleKeys, lam_G: Tensor) -> tuple[Tensor, Tensor]:
    """Fill one box, the same in all samples of a group, from their partners (Token-CutMix; SeiT, Park et al. 2023).

    Sides floor(H sqrt(1 - lam)) and floor(W sqrt(1 - lam)), centre uniform, clipped. Targets mix by the share of sites really replaced.
    """
    height, width = x_BDHW.shape[-2:]
    top_G, left_G, bottom_G, right_G = cutmix_box(keys, (height, width), lam_G)
    kept_G = 1 - ((bottom_G - top_G) * (right_G - left_G)) / (height * width)
    fill = _fill_slices_ if x_BDHW.device.type == "cpu" else _filled_by_mask
    return fill(x_BDHW, top_G, left_G, bottom_G, right_G), _mix_targets(targets_BC, kept_G)


def _fill_slices_(x_BDHW: Tensor, top_G: Tensor, left_G: Tensor, bottom_G: Tensor, right_G: Tensor) -> Tensor:
    """Fill the boxes by slices: touches only the boxes, but reads their bounds on the host."""
    edges = torch.stack([top_G, left_G, bottom_G, right_G], dim=1).tolist()
    for group, (top, left, bottom, right) in enumerate(edges):
        # With channels last, a row of the box is one contiguous piece of memory.
        box_BHWD = x_BDHW[group :: len(edges), ..., top:bottom, left:right].movedim(1, -1)
        box_BHWD.copy_(box_BHWD.flip(0))
    return x_BDHW


def _filled_by_mask(x_BDHW: Tensor, top_G: Tensor, left_G: Tensor, bottom_G: Tensor, right_G: Tensor) -> Tensor:
    """Fill the boxes by a mask: reads no bounds on the host, so a GPU need not wait."""
    rows_H, columns_W = (torch.arange(side, device=x_BDHW.device) for side in x_BDHW.shape[-2:])
    inside_GH = (rows_H >= top_G[:, None]) & (rows_H < bottom_G[:, None])
    inside_GW = (columns_W >= left_G[:, None]) & (columns_W < right_G[:, None])
    inside_GHW = inside_GH[:, :, None] & inside_GW[:, None, :]
    inside_B1HW = inside_GHW.repeat(len(x_BDHW) // len(top_G), 1, 1).view(-1, *[1] * (x_BDHW.ndim - 3), *x_BDHW.shape[-2:])
    return torch.where(inside_B1HW, _mirrored(x_BDHW, len(top_G)), x_BDHW)


def cutmix_box(keys: SampleKeys, grid: tuple[int, int], lam_G: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return top, left, bottom, right of the box of each group, int64 [G]. The key is the group's first sample."""
    edges = []
    for name, side in zip("yx", grid, strict=True):
        length_G = (side * (1 - lam_G).sqrt()).long()
        start_G = keys[: len(lam_G)].integers(f"cutmix.{name}", side)[:, 0] - length_G // 2
        edges.append((start_G.clamp(min=0), (start_G + length_G).clamp(max=side)))
    (top_G, bottom_G), (left_G, right_G) = edges
    return top_G, left_G, bottom_G, right_G


def _mix_targets(targets_BC: Tensor, lam_G: Tensor) -> Tensor:
    lam_B1 = lam_G.repeat(len(targets_BC) // len(lam_G))[:, None].to(targets_BC.dtype)
    return torch.lerp(_mirrored(targets_BC, len(lam_G)), targets_BC, lam_B1)


def draw_lambda(keys: SampleKeys, alpha: float, groups: int = 1) -> Tensor:
    """Return [G] draws of Beta(alpha, alpha). The key is the first sample of each group."""
    words_G = keys[:groups].integers("lambda", 1 << 16)[:, 0]
    return beta_quantiles(alpha, words_G.device).index_select(0, words_G)


@functools.cache
def beta_quantiles(alpha: float, device: torch.device) -> Tensor:
    """Return [65536] quantiles of Beta(alpha, alpha) at the midpoints (i + 0.5) / 65536, in the widest float type of the device.

    With x = t^(1/alpha) / 2 the density of the lower half becomes (2 - t^(1/alpha))^(alpha - 1) on 0 < t < 1, bounded for every alpha.
    """
    t = np.linspace(0.0, 1.0, _BETA_STEPS + 1)
    x = t ** (1 / alpha) / 2
    density = (2 - 2 * x) ** (alpha - 1)
    cumulated = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    lower = np.interp((np.arange(1 << 15) + 0.5) / (1 << 15), cumulated / cumulated[-1], x)
    return torch.from_numpy(np.concatenate([lower, 1 - lower[::-1]])).to(wide_float(device)).to(device)
