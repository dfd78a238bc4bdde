"""How faithful TokenAdapt is: the ids that it gives against those of the moved image, beside moving the grid of codes directly.

Shapes: M images, B of a batch, N sites of the result, Q ids per site, L sites, D channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.augment.adapt_maps import (
    MapRanges,
    affine_maps,
    nearest_sites,
    random_colours,
    random_maps,
    resampled_pixels,
    sampled,
    window_maps,
)
from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter
from tokenshards.stem_adaptors.augment.keys import SampleKeys
from tokenshards.stem_adaptors.augment.quantise import NearestCodes
from tokenshards.stem_adaptors.training.adapt_fit import Encode, Images, central_ids

__all__ = ["MOVES", "WAYS", "fidelity_of", "right_ids"]

MOVES = ("flip", "rotation", "crop")
"""A mirror image, a rotation by 15 degrees, a random-resized crop. Where colours were learned, "colour" comes too."""
WAYS = ("token_adapt", "direct_sites", "direct_codes", "nothing")
"""TokenAdapt; the id of the nearest site; the code nearest to code vectors resampled bicubic; the ids of the image as it was."""
DEGREES = 15.0
TOGETHER = 16


def move_maps(move: str, count: int, grid: tuple[int, int], seed: int) -> Tensor:
    """Return [B, 2, 3], the map of each of `count` images."""
    keys = SampleKeys(seed, -2, torch.arange(count))
    if move == "crop":
        return random_maps(keys, MapRanges(flip=0.0, affine=0.0), grid)
    zero_B = torch.zeros(count)
    angle_B = zero_B + (math.radians(DEGREES) if move == "rotation" else 0.0)
    return affine_maps(torch.full((count,), move == "flip"), angle_B, torch.zeros(count, 2), zero_B, zero_B)


@torch.no_grad()
def right_ids(
    adapter: TokenAdapter, spec: TokenizerSpec, tables: Tables, encode: Encode, pixels_MHWC: Images, *, seed: int = 0
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Return by move and way the share of right ids of each image, float64 [M, Q + 1]: each level, then all levels of a site together."""
    adapter.eval()
    device = next(adapter.parameters()).device
    nearest = NearestCodes(spec, tables)
    black = encode(np.zeros((1, *pixels_MHWC.shape[1:]), np.uint8))
    moves = (*MOVES, "colour") if adapter.sizes.colour else MOVES
    found: dict[str, dict[str, list[npt.NDArray[np.float64]]]] = {move: {way: [] for way in WAYS} for move in moves}
    for move in moves:
        keys = SampleKeys(seed, -2, torch.arange(len(pixels_MHWC)))
        colours_M3 = random_colours(keys, MapRanges(colour=adapter.sizes.colour)) if move == "colour" else None
        maps_M23 = move_maps(move, len(pixels_MHWC), adapter.grid, seed)
        for start in range(0, len(pixels_MHWC), TOGETHER):
            own = slice(start, start + TOGETHER)
            pixels_BHWC, maps_B23, colours_B3 = pixels_MHWC[own], maps_M23[own], None if colours_M3 is None else colours_M3[own]
            ids_BLQ = encode(pixels_BHWC)
            wanted_BNQ = central_ids(encode(resampled_pixels(torch.from_numpy(pixels_BHWC), maps_B23, colours_B3).numpy()), adapter)
            wide = torch.from_numpy(ids_BLQ.astype(np.int64))
            ways = {
                "token_adapt": adapter.ids(wide.to(device), maps_B23.to(device), None if colours_B3 is None else colours_B3.to(device))
                .cpu()
                .numpy(),
                "direct_sites": _moved_sites(ids_BLQ, black, maps_B23, adapter),
                "direct_codes": _moved_codes(wide, torch.from_numpy(black.astype(np.int64)), maps_B23, adapter, nearest),
                "nothing": central_ids(ids_BLQ, adapter),
            }
            for way, own_BNQ in ways.items():
                right_BNQ = own_BNQ == wanted_BNQ
                both_BN1 = right_BNQ.all(axis=2, keepdims=True)
                found[move][way].append(np.concatenate([right_BNQ, both_BN1], axis=2).mean(axis=1))
    return {move: {way: np.concatenate(parts) for way, parts in ways.items()} for move, ways in found.items()}


def fidelity_of(right: dict[str, dict[str, npt.NDArray[np.float64]]]) -> dict[str, Any]:
    """Return the means over images: by move and way the share of right ids over all levels (`ids`), by level, and of whole sites."""
    return {
        move: {
            way: {
                "ids": round(float(shares[:, :-1].mean()), 4),
                "levels": [round(float(value), 4) for value in shares[:, :-1].mean(axis=0)],
                "sites": round(float(shares[:, -1].mean()), 4),
            }
            for way, shares in ways.items()
        }
        for move, ways in right.items()
    }


def _moved_sites(ids_BLQ: npt.NDArray[Any], black_1LQ: npt.NDArray[Any], maps_B23: Tensor, adapter: TokenAdapter) -> npt.NDArray[Any]:
    """Return for each site of the result the ids of the site nearest to its place; outside of the image those of black."""
    window = adapter.sizes.out_grid
    site_BN = nearest_sites(window_maps(maps_B23, adapter.grid, window), adapter.grid, window)
    inside_BN1 = (site_BN >= 0).numpy()[..., None]
    taken_BNQ = np.take_along_axis(ids_BLQ, site_BN.clamp_min(0).numpy()[..., None], axis=1)
    found: npt.NDArray[Any] = np.where(inside_BN1, taken_BNQ, central_ids(black_1LQ, adapter))
    return found


def _moved_codes(ids_BLQ: Tensor, black_1LQ: Tensor, maps_B23: Tensor, adapter: TokenAdapter, nearest: NearestCodes) -> npt.NDArray[Any]:
    """Return the codes nearest to the code vectors of the sites, resampled bicubic; outside of the image those of black."""
    device = next(adapter.parameters()).device
    fill_1LD = adapter.vectors(black_1LQ.to(device)).cpu().mean(1, keepdim=True)
    x_BLD = adapter.vectors(ids_BLQ.to(device)).cpu() - fill_1LD
    x_BDHW = x_BLD.transpose(1, 2).reshape(len(x_BLD), -1, *adapter.grid)
    maps_B23 = window_maps(maps_B23, adapter.grid, adapter.sizes.out_grid)
    moved_BND = sampled(x_BDHW, maps_B23, adapter.sizes.out_grid, "bicubic").flatten(2).transpose(1, 2) + fill_1LD
    found: npt.NDArray[Any] = nearest(moved_BND).numpy()
    return found
