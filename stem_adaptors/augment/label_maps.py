"""Label maps: the class of each pixel of an image, moved as the sites of the image's tokens are moved.

A grid of sites covers its map: a pixel belongs to the site that its centre lies in. Places are integers, so that every device moves a map
alike.

Shapes: B samples, G mix groups, H x W pixels of a map, O x P pixels of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenshards.stem_adaptors.augment.embed_ops import mirrored

__all__ = ["centre_cropped", "cropped", "swapped", "with_boxes_filled"]

Sides = tuple[int, int]


def cropped(maps_BHW: Tensor, boxes_B4: Tensor, grid: Sides, size: Sides) -> Tensor:
    """Return [B, O, P]: the nearest pixels of a box of each map, for embeddings that are resampled from the box to `size` sites.

    `boxes_B4`: top, left, height, width in sites of `grid`, int64. A site of the result has as many pixels as one of the map. Pixel o of O
    takes the pixel in which its centre lies: top + (o + 1/2) height / O sites from the edge.
    """
    places = []
    for axis in (0, 1):
        pixels, sites = maps_BHW.shape[1 + axis], grid[axis]
        out = _pixels(pixels, sites, size[axis])
        odd_O = 2 * torch.arange(out, device=maps_BHW.device) + 1
        start_B1, length_B1 = boxes_B4[:, axis, None], boxes_B4[:, 2 + axis, None]
        place_BO = (2 * out * start_B1 + odd_O * length_B1) * pixels // (2 * out * sites)
        places.append(place_BO.clamp(max=pixels - 1))
    samples_B11 = torch.arange(len(maps_BHW), device=maps_BHW.device)[:, None, None]
    return maps_BHW[samples_B11, places[0][:, :, None], places[1][:, None, :]]


def centre_cropped(maps_BHW: Tensor, grid: Sides, size: Sides) -> Tensor:
    """Return the part of maps that the central window of `size` sites shows, see `crops.centre_crop`."""
    if size == grid:
        return maps_BHW
    box = [(whole - part) // 2 for whole, part in zip(grid, size, strict=True)] + list(size)
    return cropped(maps_BHW, torch.tensor([box], device=maps_BHW.device).expand(len(maps_BHW), -1), grid, size)


def with_boxes_filled(maps_BHW: Tensor, edges_G4: Tensor, grid: Sides) -> Tensor:
    """Return maps whose box is filled from the partners, for embeddings in which CutMix filled it.

    `edges_G4`: top, left, bottom, right of the box of each group in sites of `grid`, see `embed_ops.cutmix_box`.
    """
    groups = len(edges_G4)
    inside = []
    for axis in (0, 1):
        site_N = _site_of_pixels(maps_BHW.shape[1 + axis], grid[axis], maps_BHW.device)
        inside.append((site_N >= edges_G4[:, axis, None]) & (site_N < edges_G4[:, 2 + axis, None]))
    inside_GHW = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(inside_GHW.repeat(len(maps_BHW) // groups, 1, 1), mirrored(maps_BHW, groups), maps_BHW)


def swapped(maps_BHW: Tensor, corners_B22: Tensor, sides_B: Tensor, grid: Sides) -> Tensor:
    """Return maps in which two blocks have changed places, for ids in which `index_ops.swap_blocks` swapped them.

    A block moves by whole pixels: where a site is no whole number of pixels, by the nearest number.
    """
    inside, moves = [], []
    for axis in (0, 1):
        pixels, sites = maps_BHW.shape[1 + axis], grid[axis]
        offset_B2N = _site_of_pixels(pixels, sites, maps_BHW.device) - corners_B22[:, :, axis, None]
        inside.append((offset_B2N >= 0) & (offset_B2N < sides_B[:, None, None]))
        moves.append((2 * (corners_B22[:, 1, axis] - corners_B22[:, 0, axis]) * pixels + sites) // (2 * sites))
    first_BHW, second_BHW = (inside[0][..., None] & inside[1][:, :, None]).unbind(1)
    # A pixel in both blocks takes what the first block held.
    sign_BHW = torch.where(second_BHW, -1, first_BHW.long())
    places = []
    for axis, move_B in enumerate(moves):
        pixels = maps_BHW.shape[1 + axis]
        own_N = torch.arange(pixels, device=maps_BHW.device).view(-1, *[1] * (1 - axis))
        places.append((own_N + sign_BHW * move_B[:, None, None]).clamp(0, pixels - 1))
    samples_B11 = torch.arange(len(maps_BHW), device=maps_BHW.device)[:, None, None]
    return maps_BHW[samples_B11, places[0], places[1]]


def _pixels(pixels: int, sites: int, part: int) -> int:
    """Return how many pixels `part` of the sites have, at least 1."""
    return max(1, (2 * pixels * part + sites) // (2 * sites))


def _site_of_pixels(pixels: int, sites: int, device: torch.device) -> Tensor:
    """Return int64 [N]: the site in which the centre of each pixel lies."""
    return (2 * torch.arange(pixels, device=device) + 1) * sites // (2 * pixels)
