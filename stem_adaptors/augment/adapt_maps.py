"""The geometric maps of TokenAdapt: one 2 x 3 matrix for each sample, used alike on pixels, on cells of tokens and on ids.

A matrix maps places of the result to places of the input, in coordinates from -1 to 1 between the outer edges of the image, x to the right
and y down. Pixel or cell i of n has its centre at (2 i + 1) / n - 1, so a matrix means the same map at every resolution.

Shapes: B samples, H x W image, h x w window of its sites, C colours or channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenshards.pipeline.errors import require
from tokenshards.stem_adaptors.augment.crops import CROP_TRIES, crop_boxes
from tokenshards.stem_adaptors.augment.numbers import Draw, Numbers

__all__ = [
    "MapRanges",
    "affine_maps",
    "product",
    "random_colours",
    "random_maps",
    "nearest_sites",
    "resampled_pixels",
    "sampled",
    "window_maps",
]

_PARTS = 5
"""Rotation, shift along x and y, shear along x and y."""


@dataclass(frozen=True, kw_only=True)
class MapRanges:
    """How maps are drawn. The ranges are those of SeiT++ (Lee et al. 2024), each on both sides of zero."""

    flip: float = 0.5
    """Share of samples mirrored left to right."""
    affine: float = 0.5
    """Share of samples that are rotated, shifted or sheared: each of the five parts in half of them."""
    degrees: float = 30.0
    """Largest rotation."""
    shift: float = 0.2
    """Largest shift as a share of the side."""
    shear: float = 15.0
    """Largest angle of shear in degrees."""
    crop: float = 1.0
    """Share of samples of which a random crop is enlarged at the end."""
    scale_min: float = 0.08
    """Least share of the area in this crop."""
    ratio_max: float = 4 / 3
    """Largest aspect ratio of this crop; the least is its inverse."""

    colour: float = 0.0
    """Largest change of brightness, contrast and saturation as a share, each drawn for itself; 0 for none."""

    def __post_init__(self) -> None:
        require(0.0 <= self.colour < 1.0, "token_adapt: colour", self.colour, "0 to less than 1")
        for name in ("flip", "affine", "crop"):
            require(0.0 <= getattr(self, name) <= 1.0, f"token_adapt: {name}", getattr(self, name), "a number from 0 to 1")
        require(0.0 <= self.degrees <= 180.0, "token_adapt: degrees", self.degrees, "0 to 180")
        require(0.0 <= self.shift <= 1.0, "token_adapt: shift", self.shift, "0 to 1")
        require(0.0 <= self.shear < 90.0, "token_adapt: shear", self.shear, "0 to less than 90")
        require(0.0 < self.scale_min <= 1.0, "token_adapt: scale_min", self.scale_min, "above 0, at most 1")
        require(self.ratio_max >= 1.0, "token_adapt: ratio_max", self.ratio_max, "at least 1")

    def draws(self) -> tuple[Draw, ...]:
        """Return the numbers that `random_maps` and `random_colours` ask for."""
        crop = Draw("crop.box", count=2 * CROP_TRIES), Draw("crop.y", "integers"), Draw("crop.x", "integers")
        colour = (Draw("token_adapt.colour", count=3),) if self.colour else ()
        return (Draw("token_adapt", count=3 + 2 * _PARTS), *crop, *colour)


def random_maps(numbers: Numbers, ranges: MapRanges, grid: tuple[int, int]) -> Tensor:
    """Return float32 [B, 2, 3]: mirror, rotation, shift, shear, then a random crop, as one map of whole images.

    The box of the crop has whole cells of the doubled `grid`, as TokenAdapt crops its cells.
    """
    draws_BN = numbers.uniform("token_adapt", 3 + 2 * _PARTS)
    mirrored_B = draws_BN[:, 0] < ranges.flip
    some_BP = (draws_BN[:, 1:2] < ranges.affine) & (draws_BN[:, 2 : 2 + _PARTS] < 0.5)
    signed_BP = torch.where(some_BP, 2 * draws_BN[:, 2 + _PARTS : -1] - 1, 0.0)
    angle_B, right_B, down_B, shear_x_B, shear_y_B = signed_BP.unbind(1)
    maps_B23 = affine_maps(
        mirrored_B,
        angle_B * math.radians(ranges.degrees),
        2 * ranges.shift * torch.stack([right_B, down_B], 1),
        (shear_x_B * math.radians(ranges.shear)).tan(),
        (shear_y_B * math.radians(ranges.shear)).tan(),
    )
    sides = 2 * grid[0], 2 * grid[1]
    boxes_B4 = crop_boxes(numbers, sides, scale_min=ranges.scale_min, ratio_max=ranges.ratio_max).float()
    cropped_B11 = (draws_BN[:, -1] < ranges.crop)[:, None, None]
    return torch.where(cropped_B11, product(maps_B23, _box_maps(boxes_B4, sides)), maps_B23)


def random_colours(numbers: Numbers, ranges: MapRanges) -> Tensor | None:
    """Return float32 [B, 3], the changes of brightness, contrast and saturation as shares; None where the ranges have none."""
    return ranges.colour * (2 * numbers.uniform("token_adapt.colour", 3) - 1) if ranges.colour else None


def affine_maps(mirrored_B: Tensor, angle_B: Tensor, shift_B2: Tensor, shear_x_B: Tensor, shear_y_B: Tensor) -> Tensor:
    """Return [B, 2, 3], the map of places of the result: shears (tangents), shift (x, y), rotation (radians), mirror, in this order."""
    one_B, zero_B = torch.ones_like(angle_B), torch.zeros_like(angle_B)
    sign_B = torch.where(mirrored_B, -1.0, 1.0)
    turned = _maps(sign_B * angle_B.cos(), -sign_B * angle_B.sin(), zero_B, angle_B.sin(), angle_B.cos(), zero_B)
    shifted = _maps(one_B, zero_B, shift_B2[:, 0], zero_B, one_B, shift_B2[:, 1])
    sheared = product(_maps(one_B, shear_x_B, zero_B, zero_B, one_B, zero_B), _maps(one_B, zero_B, zero_B, shear_y_B, one_B, zero_B))
    return product(product(turned, shifted), sheared)


def window_maps(maps_B23: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Return the maps of the central `window` of a grid, as evaluation cuts it out, in the coordinates of the window."""
    (height, width), (rows, columns) = grid, window
    box = [(height - rows) // 2, (width - columns) // 2, rows, columns]
    box_14 = torch.tensor([box], dtype=torch.float32, device=maps_B23.device)
    return product(maps_B23, _box_maps(box_14, grid))


def product(first_B23: Tensor, second_B23: Tensor) -> Tensor:
    """Return the map that does the second, then the first. Sums of products: a GPU would round a matrix product to TF32."""
    linear_B22 = (first_B23[:, :, :2, None] * second_B23[:, None, :, :2]).sum(2)
    moved_B2 = (first_B23[:, :, :2] * second_B23[:, None, :, 2]).sum(2) + first_B23[:, :, 2]
    return torch.cat([linear_B22, moved_B2[..., None]], dim=2)


def _maps(*entries_B: Tensor) -> Tensor:
    return torch.stack(entries_B, dim=1).view(-1, 2, 3)


def _box_maps(boxes_B4: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the maps from the places of boxes (top, left, height, width) to places of the grid."""
    top_B, left_B, rows_B, columns_B = boxes_B4.unbind(1)
    height, width = grid
    zero_B = torch.zeros_like(top_B)
    return _maps(
        columns_B / width, zero_B, (2 * left_B + columns_B) / width - 1, zero_B, rows_B / height, (2 * top_B + rows_B) / height - 1
    )


def sampled(x_BCHW: Tensor, maps_B23: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Return [B, C, *size], x at the mapped places; zero outside of it."""
    device = x_BCHW.device
    y_H1, x_1W = (((2 * torch.arange(side, device=device) + 1) / side - 1) for side in size)
    y_H1, x_1W = y_H1[:, None], x_1W[None]
    entries = maps_B23.view(-1, 6, 1, 1).unbind(1)
    places_BHW2 = torch.stack([entries[0] * x_1W + entries[1] * y_H1 + entries[2], entries[3] * x_1W + entries[4] * y_H1 + entries[5]], -1)
    return F.grid_sample(x_BCHW, places_BHW2, mode=mode, padding_mode="zeros", align_corners=False)


def nearest_sites(maps_B23: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return int64 [B, N], for each place of the result the site of the grid that is nearest; -1 outside of the image."""
    places = torch.arange(1, grid[0] * grid[1] + 1, dtype=torch.float32, device=maps_B23.device).view(1, 1, *grid)
    return sampled(places.expand(len(maps_B23), -1, -1, -1), maps_B23, size, "nearest").flatten(1).long() - 1


def resampled_pixels(pixels_BHWC: Tensor, maps_B23: Tensor, colours_B3: Tensor | None = None) -> Tensor:
    """Return uint8 images of the same size, bicubic, black outside of the input, first with other colours."""
    _, height, width, _ = pixels_BHWC.shape
    x_BCHW = pixels_BHWC.movedim(-1, 1).float()
    if colours_B3 is not None:
        x_BCHW = _coloured(x_BCHW, colours_B3)
    return sampled(x_BCHW, maps_B23, (height, width), "bicubic").round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def _coloured(x_BCHW: Tensor, colours_B3: Tensor) -> Tensor:
    """Return images of 0 to 255 brighter, with more contrast, with more saturation, in this order, as torchvision defines the three."""
    brightness_B, contrast_B, saturation_B = (1 + colours_B3).view(-1, 3, 1, 1, 1).unbind(1)
    x_BCHW = (x_BCHW * brightness_B).clamp(0, 255)
    mean_B = _grey(x_BCHW).mean(dim=(1, 2, 3), keepdim=True)
    x_BCHW = (mean_B + (x_BCHW - mean_B) * contrast_B).clamp(0, 255)
    grey_B1HW = _grey(x_BCHW)
    return (grey_B1HW + (x_BCHW - grey_B1HW) * saturation_B).clamp(0, 255)


def _grey(x_BCHW: Tensor) -> Tensor:
    """Return luma (ITU-R BT.601)."""
    return (x_BCHW * x_BCHW.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
