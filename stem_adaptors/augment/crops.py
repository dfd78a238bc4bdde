"""Crops of embeddings: boxes, cubic resampling, windows.

Every tensor is [B, D, sites]: an image x_BDHW or a video B D T H W, whose frames are treated alike. The memory layout is free:
channel-last is the fastest, and crops return it. All maths is float32.

Shapes: B samples, D channels, H x W grid, T tries or frames, O output side, N lines of sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenshards.pipeline.devices import wide_float
from tokenshards.stem_adaptors.augment.keys import all_rows
from tokenshards.stem_adaptors.augment.numbers import Numbers

__all__ = ["bicubic_taps", "centre_crop", "crop_boxes", "cut_windows", "resample", "resample_in_pieces", "window_boxes"]

CROP_TRIES = 10
PIECE_BYTES = 4 << 20
"""Bytes of embeddings that one pass works on, on a CPU."""

Taps = tuple[Tensor, Tensor]
"""The sites that make each output site, int32 [B, O, 4], and their weights."""


def crop_boxes(numbers: Numbers, grid: tuple[int, int], *, scale_min: float, ratio_max: float) -> Tensor:
    """Return int64 [B, 4] = top, left, height, width, drawn as torchvision's RandomResizedCrop draws them.

    The area share is U(scale_min, 1); the log of the aspect ratio is U(-log ratio_max, log ratio_max); sides are rounded. The first of
    CROP_TRIES boxes that fits is placed uniformly. Without one, the box is the largest central one of an allowed ratio.
    """
    height, width = grid
    draws = numbers.uniform("crop.box", 2 * CROP_TRIES)
    draws_BT2 = draws.to(wide_float(draws.device)).view(-1, CROP_TRIES, 2)
    area_BT = (scale_min + (1 - scale_min) * draws_BT2[..., 0]) * (height * width)
    ratio_BT = ((2 * draws_BT2[..., 1] - 1) * math.log(ratio_max)).exp()
    sides_BT2 = torch.stack([area_BT / ratio_BT, area_BT * ratio_BT], dim=-1).sqrt().round().long()
    fits_BT = (sides_BT2 > 0).all(-1) & (sides_BT2[..., 0] <= height) & (sides_BT2[..., 1] <= width)
    first_B1, none_B1 = fits_BT.int().argmax(1, keepdim=True), ~fits_BT.any(1, keepdim=True)
    sides_B12 = sides_BT2.gather(1, first_B1[..., None].expand(-1, 1, 2))
    starts, lengths = [], []
    for axis, (name, side, fallback) in enumerate(zip("yx", grid, _central_sides(height, width, ratio_max), strict=True)):
        lengths.append(sides_B12[..., axis].masked_fill(none_B1, fallback))
        starts.append(numbers.integers(f"crop.{name}", side + 1 - lengths[-1]).masked_fill(none_B1, (side - fallback) // 2))
    return torch.cat([*starts, *lengths], dim=1)


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
    if all_rows(x_BDHW.device):
        return _resampled(x_BDHW, _both_taps(boxes_B4, size), size).to(x_BDHW.dtype)
    return resample_in_pieces(lambda piece: x_BDHW[piece], pieces(x_BDHW.shape), boxes_B4, size)


def resample_in_pieces(look_up: Callable[[slice], Tensor], pieces: Sequence[slice], boxes_B4: Tensor, size: tuple[int, int]) -> Tensor:
    """Do as `resample` with the samples that `look_up` returns for each piece of a batch, from the first to the last."""
    taps = _both_taps(boxes_B4, size)
    out_BHWD = torch.empty(0)
    for piece in pieces:
        x_RDHW = look_up(piece)
        x_RHWD = _resampled(x_RDHW, [(sites[piece], weights[piece]) for sites, weights in taps], size).movedim(1, -1)
        if piece.start == 0:
            out_BHWD = torch.empty(len(boxes_B4), *x_RHWD.shape[1:], dtype=x_RDHW.dtype)
        out_BHWD[piece] = x_RHWD
    return out_BHWD.movedim(-1, 1)


def pieces(shape: torch.Size) -> list[slice]:
    """Return slices of a batch of float32 that stay in the cache of a CPU."""
    rows = max(1, PIECE_BYTES // max(1, 4 * math.prod(shape[1:])))
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]


def _resampled(x_BDHW: Tensor, taps: Sequence[Taps], size: tuple[int, int]) -> Tensor:
    """Return float32 samples, resampled along both axes."""
    x_BTHWD = x_BDHW.movedim(1, -1)
    *lead, height, width, channels = x_BTHWD.shape
    (down_BO4, down_weights_BO4), (across_BO4, across_weights_BO4) = taps
    # Rows first: they are wide, so few sums suffice, and rows outside of the boxes are never read.
    planes = math.prod(lead)
    x_NE = x_BTHWD.float().reshape(-1, width * channels)
    x_NE = _weighted_sums(x_NE, down_BO4, down_weights_BO4, lines=planes, step=height)
    x_ND = _weighted_sums(x_NE.view(-1, channels), across_BO4, across_weights_BO4, lines=planes * size[0], step=width)
    return x_ND.view(*lead, *size, channels).movedim(-1, 1)


def _weighted_sums(x_ND: Tensor, taps_BO4: Tensor, weights_BO4: Tensor, *, lines: int, step: int) -> Tensor:
    """Return weighted sums of four rows of x, [lines * O, D]. Line i starts at row i * step; all lines of a sample share their taps."""
    starts_BN11 = (torch.arange(lines, dtype=torch.int32, device=x_ND.device) * step).view(len(taps_BO4), -1, 1, 1)
    rows_N4 = (taps_BO4[:, None] + starts_BN11).view(-1, 4)
    weights_N4 = weights_BO4[:, None].expand(-1, starts_BN11.shape[1], -1, -1).reshape(-1, 4)
    if not torch.compiler.is_compiling():
        return F.embedding_bag(rows_N4, x_ND, per_sample_weights=weights_N4, mode="sum")
    # A compiler fuses these sums, and cannot see into embedding_bag.
    total = x_ND.index_select(0, rows_N4[:, 0]) * weights_N4[:, :1]
    for tap in range(1, 4):
        total = total + x_ND.index_select(0, rows_N4[:, tap]) * weights_N4[:, tap, None]
    return total


def _both_taps(boxes_B4: Tensor, size: tuple[int, int]) -> tuple[Taps, Taps]:
    """Return the taps of both axes."""
    if size[0] == size[1]:
        taps_B2O4, weights_B2O4 = bicubic_taps(boxes_B4[:, :2], boxes_B4[:, 2:], size[0])
        return (taps_B2O4[:, 0], weights_B2O4[:, 0]), (taps_B2O4[:, 1], weights_B2O4[:, 1])
    down, across = (bicubic_taps(boxes_B4[:, axis], boxes_B4[:, 2 + axis], size[axis]) for axis in (0, 1))
    return down, across


def bicubic_taps(start: Tensor, length: Tensor, out: int) -> tuple[Tensor, Tensor]:
    """Return the sites, int32 [..., out, 4], and weights, float32 [..., out, 4], that make `out` sites of start .. start + length - 1.

    Cubic convolution (R. Keys, 1981) with a = -0.75, centres at half sites, indices clamped to the box: the same as `F.interpolate` without
    align_corners and antialias. The weights of a site sum to 1.
    """
    places_O = torch.arange(0.5, out, device=start.device)
    source_O1 = (places_O * (length[..., None].float() / out) - 0.5)[..., None]
    floor_O1 = source_O1.floor()
    steps_4 = torch.arange(-1, 3, device=start.device)
    taps_O4 = (floor_O1.long() + steps_4).clamp(min=0).minimum(length[..., None, None] - 1) + start[..., None, None]
    return taps_O4.int(), _cubic((source_O1 - floor_O1 - steps_4).abs())


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)


def window_boxes(numbers: Numbers, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return int64 [B, 4] = top, left, height, width of a window of `size` at a uniform place (SeiT's option `--src`)."""
    top_B1, left_B1 = numbers.integers("crop.y", grid[0] - size[0] + 1), numbers.integers("crop.x", grid[1] - size[1] + 1)
    return torch.cat([top_B1, left_B1, torch.full_like(top_B1, size[0]), torch.full_like(left_B1, size[1])], dim=1)


def cut_windows(x_BDHW: Tensor, boxes_B4: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a window of `size` out of each sample, at the top and left of its box."""
    x_BHWD = x_BDHW.movedim(1, -1)
    top_B1, left_B1 = boxes_B4[:, :1], boxes_B4[:, 1:2]
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
