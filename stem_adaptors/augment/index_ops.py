"""Augmentations of ids: synonyms, block swap, mirroring. They read ids only and return ids.

Ids are int32 or int64, because torch has no arithmetic on uint16 and uint32. The Q ids of a site always move together. Padded sites of
a ragged batch hold an id outside of the vocabulary; no operation changes these sites.

Shapes: B samples, L sites, Q ids per site, H x W grid (a video has T of them), K codes of a level, S synonyms of a code, D width of a
code vector.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import Layout
from tokenshards.stem_adaptors.augment.keys import SampleKeys, affected_rows

__all__ = ["mirror", "replace_synonyms", "swap_blocks", "synonym_table", "token_eda"]

SWAP_TRIES = 10
_BLOCK_CODES = 1024


def synonym_table(tables: Tables, count: int, metric: str = "cosine") -> list[Tensor]:
    """Return, for each level, int64 [K, S]: the S = min(count, K - 1) most similar codes, best first, without the code itself.

    The metric is `cosine` similarity or Euclidean distance (`l2`). A level of one code has that code as its only synonym. Raises
    ConfigError without tables. SeiT (Park et al. 2023) ships such a table and no way to make one.
    """
    if not tables:
        raise ConfigError("synonyms need code vectors, and this tokenizer has no codebook; set synonym_prob to 0")
    return [_most_alike(tables[f"level_{level}"], count, metric) for level in range(len(tables))]


def _most_alike(table_KD: npt.NDArray[Any], count: int, metric: str) -> Tensor:
    vectors_KD = torch.from_numpy(np.asarray(table_KD, np.float64))
    codes = len(vectors_KD)
    if codes == 1:
        return torch.zeros(1, 1, dtype=torch.int64)
    # The nearest c of x has the largest x.c - |c|^2 / 2.
    handicap_K = vectors_KD.square().sum(dim=1) / 2
    if metric == "cosine":
        vectors_KD, handicap_K = torch.nn.functional.normalize(vectors_KD, dim=1), torch.zeros_like(handicap_K)
    found = []
    for start in range(0, codes, _BLOCK_CODES):
        scores = vectors_KD[start : start + _BLOCK_CODES] @ vectors_KD.T - handicap_K
        own = torch.arange(len(scores))
        scores[own, own + start] = -torch.inf
        found.append(scores.topk(min(count, codes - 1)).indices)
    return torch.cat(found)


def replace_synonyms(ids_BLQ: Tensor, keys: SampleKeys, synonyms: Sequence[Tensor], share: float) -> Tensor:
    """Replace a `share` of all ids by a uniform draw from the synonyms of the id, each id independently, as in SeiT."""
    samples, sites, levels = ids_BLQ.shape
    ids_BQL = ids_BLQ.transpose(1, 2)
    new_BQL = torch.empty(samples, levels, sites, dtype=ids_BLQ.dtype, device=ids_BLQ.device)
    for level, table_KS in enumerate(synonyms):
        # Each level has its own number keys: the site count of a ragged batch is that of the longest row, and must not change the draws.
        replaced_BL = keys.uniform(f"synonyms.replace.{level}", sites) < share
        codes, count = table_KS.shape
        ids_BL = ids_BQL[:, level]
        draw_BL = keys.integers(f"synonyms.draw.{level}", count, sites)
        index_BL = ids_BL.clamp(max=codes - 1).long() * count + draw_BL
        other_BL = table_KS.flatten().index_select(0, index_BL.flatten()).view(samples, sites)
        new_BQL[:, level] = torch.where(replaced_BL & (ids_BL < codes), other_BL.to(ids_BLQ.dtype), ids_BL)
    return new_BQL.transpose(1, 2)


def swap_blocks(ids_BLQ: Tensor, keys: SampleKeys, layout: Layout, max_share: float) -> Tensor:
    """Exchange two square blocks of every sample (as in SeiT). In a video the blocks are the same in all frames.

    The side is floor(min(H, W) * U(0, max_share)). Both corners are uniform on [0, H - side - 1] x [0, W - side - 1]; they are drawn again,
    up to SWAP_TRIES times, until their Euclidean distance exceeds the side. Without such a pair the sample stays as it is. Both blocks are
    read from the original; a site in both blocks takes what the first block held.
    """
    height, width = _plane(layout, "swap_prob")
    first_B2, second_B2, side_B = swap_corners(keys, (height, width), max_share)
    first_BHW, second_BHW = (_inside(corner_B2, side_B, (height, width)) for corner_B2 in (first_B2, second_B2))
    move_B2 = second_B2 - first_B2
    move_B = move_B2[:, 0] * width + move_B2[:, 1]
    move_BHW = first_BHW * move_B[:, None, None]
    move_BHW = torch.where(second_BHW, -move_B[:, None, None], move_BHW)
    source_BN = move_BHW.flatten(1) + torch.arange(height * width, device=ids_BLQ.device)
    return _gather_sites(ids_BLQ, height * width, source_BN)


def _gather_sites(ids_BLQ: Tensor, plane_sites: int, source_BN: Tensor) -> Tensor:
    """Return the sites `source_BN` of every plane (a level of a grid; a level and frame of a video) of each sample."""
    samples, sites, levels = ids_BLQ.shape
    planes = sites // plane_sites
    ids_BMN = ids_BLQ.transpose(1, 2).reshape(samples, levels * planes, plane_sites)
    taken_BMN = ids_BMN.gather(2, source_BN[:, None].expand(-1, levels * planes, -1))
    return taken_BMN.view(samples, levels, planes * source_BN.shape[1]).transpose(1, 2)


def _inside(corner_B2: Tensor, side_B: Tensor, plane: tuple[int, int]) -> Tensor:
    """Return bool [B, H, W], True in the square at each corner."""
    offsets = [torch.arange(size, device=side_B.device) - corner_B2[:, axis, None] for axis, size in enumerate(plane)]
    rows_BH, columns_BW = ((offset >= 0) & (offset < side_B[:, None]) for offset in offsets)
    return rows_BH[:, :, None] & columns_BW[:, None, :]


def swap_corners(keys: SampleKeys, plane: tuple[int, int], max_share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return both corners, int64 [B, 2] each, and the side [B] for `swap_blocks`; side 0 means no swap."""
    side_B = (keys.uniform("swap.side")[:, 0] * (max_share * min(plane))).long()
    room_B12 = torch.stack([(side - side_B).clamp(min=1) for side in plane], dim=-1)[:, None]
    corners_BN = keys.integers("swap.corners", room_B12.expand(-1, 2 * SWAP_TRIES, 2).flatten(1), 4 * SWAP_TRIES)
    corners_BT22 = corners_BN.view(len(keys), SWAP_TRIES, 2, 2)
    distance_BT = (corners_BT22[:, :, 0] - corners_BT22[:, :, 1]).square().sum(-1)
    apart_BT = distance_BT > side_B[:, None] ** 2
    picked_B = apart_BT.int().argmax(1)
    corners_B22 = corners_BT22[torch.arange(len(keys), device=side_B.device), picked_B]
    return corners_B22[:, 0], corners_B22[:, 1], torch.where(apart_BT.any(1), side_B, 0)


def token_eda(
    ids_BLQ: Tensor,
    keys: SampleKeys,
    layout: Layout,
    synonyms: Sequence[Tensor],
    *,
    synonym_prob: float,
    replace_prob: float,
    swap_prob: float,
    swap_max_share: float,
) -> Tensor:
    """Give each sample synonyms, a swap or nothing, with these probabilities (Token-EDA; SeiT, Park et al. 2023)."""
    draw_B = keys.uniform("eda")[:, 0]
    if synonym_prob > 0:
        hit_B = draw_B < synonym_prob
        rows = affected_rows(hit_B)
        ids_BLQ = _put(ids_BLQ, hit_B, rows, replace_synonyms(ids_BLQ[rows], keys[rows], synonyms, replace_prob))
    if swap_prob > 0:
        hit_B = (draw_B >= synonym_prob) & (draw_B < synonym_prob + swap_prob)
        rows = affected_rows(hit_B)
        ids_BLQ = _put(ids_BLQ, hit_B, rows, swap_blocks(ids_BLQ[rows], keys[rows], layout, swap_max_share))
    return ids_BLQ


def _put(ids_BLQ: Tensor, hit_B: Tensor, rows: Tensor, new_RLQ: Tensor) -> Tensor:
    new_RLQ = torch.where(hit_B[rows, None, None], new_RLQ, ids_BLQ[rows])
    return ids_BLQ.index_copy(0, rows, new_RLQ)


def mirror(ids_BLQ: Tensor, keys: SampleKeys, layout: Layout, share: float) -> Tensor:
    """Mirror a `share` of the samples left to right: a grid, each frame of a video, each level of a pyramid."""
    if not can_mirror(layout):
        raise ConfigError(refusal(layout, "flip_prob", share))
    hit_B = keys.chosen("flip", share)
    rows = affected_rows(hit_B)
    return _put(ids_BLQ, hit_B, rows, ids_BLQ[rows].index_select(1, _mirrored_sites(layout, ids_BLQ.device)))


@functools.cache
def _mirrored_sites(layout: Layout, device: torch.device) -> Tensor:
    """Return int64 [L]: the source site of each site of the mirrored layout."""
    parts, start = [], 0
    for shape in layout.scales or (layout.grid,):
        part_N = torch.arange(math.prod(shape)).view(shape).flip(-1).flatten()
        parts.append(part_N + start)
        start += len(part_N)
    return torch.cat(parts).to(device)


def has_plane(layout: Layout) -> bool:
    """Whether all samples share one grid. Blocks, boxes and crops need one."""
    return layout.kind in ("grid", "video") and not layout.variable


def can_mirror(layout: Layout) -> bool:
    """Whether sites have a left and a right, at the same place in all samples."""
    return layout.kind != "sequence" and not layout.variable


def refusal(layout: Layout, option: str, value: object) -> str:
    """Return the message for an operation that has no meaning in this layout."""
    kind = f"{layout.kind} of varying size" if layout.variable else layout.kind
    neutral = {"crop": "'centre'", "crop_share": "1.0"}.get(option, "0")
    return f"{option} is {value!r}, which means nothing in a layout of kind {kind}; set it to {neutral}, or use default_augmentations(spec)"


def _plane(layout: Layout, operation: str) -> tuple[int, int]:
    if not has_plane(layout):
        raise ConfigError(refusal(layout, operation, "on"))
    height, width = layout.grid[-2:]
    return height, width
