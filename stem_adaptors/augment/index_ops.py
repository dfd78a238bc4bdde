"""Augmentations of ids: synonyms, block swap, mirroring. They read ids only and return ids.

Ids are int32 or int64, because torch has no arithmetic on uint16 and uint32. The Q ids of a site always move together. Padded sites of
a ragged batch hold an id outside of the vocabulary; no operation changes these sites.

Shapes: B samples, L sites, Q ids per site, H x W grid (a video has T of them), K codes of a level, S synonyms of a code, D width of a
code vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment.numbers import Numbers

__all__ = [
    "Synonyms",
    "can_mirror",
    "has_plane",
    "id_dtype",
    "meaningless",
    "mirrored_sites",
    "refusal",
    "replace_synonyms",
    "swap_blocks",
    "swap_corners",
    "synonym_table",
]

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


def id_dtype(spec: TokenizerSpec) -> torch.dtype:
    """Return int32, or int64 where the vocabulary needs that."""
    return torch.int32 if max(spec.vocabulary) < 1 << 31 else torch.int64


@dataclass(frozen=True, slots=True)
class Synonyms:
    """The synonyms of all levels in one table."""

    flat_N: Tensor
    """The synonyms of level 0, code after code, then those of level 1, and so on."""
    first_Q1: Tensor
    """Place in `flat_N` where a level begins."""
    codes_Q1: Tensor
    """K of each level."""
    counts: tuple[int, ...]
    """S of each level."""
    counts_Q1: Tensor

    @classmethod
    def packed(cls, tables: Sequence[Tensor], dtype: torch.dtype = torch.int32) -> Synonyms:
        """Pack the result of `synonym_table` for ids of a dtype."""
        codes, counts = [len(table_KS) for table_KS in tables], [table_KS.shape[1] for table_KS in tables]
        starts = np.cumsum([0, *(table_KS.numel() for table_KS in tables)])[:-1]
        flat_N = torch.cat([table_KS.flatten() for table_KS in tables]).to(dtype)
        return cls(flat_N, _column(starts), _column(codes, dtype), tuple(counts), _column(counts))


def _column(values: Sequence[int] | npt.NDArray[Any], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=dtype)[:, None]


def replace_synonyms(ids_BLQ: Tensor, numbers: Numbers, synonyms: Synonyms, share: float) -> Tensor:
    """Replace a `share` of all ids by a uniform draw from the synonyms of the id, each id independently, as in SeiT."""
    sites = ids_BLQ.shape[1]
    # Each level has its own streams: the site count of a ragged batch is that of the longest row, and must not change the draws.
    chances = [numbers.uniform(f"synonyms.replace.{level}", sites) for level in range(len(synonyms.counts))]
    draws = [numbers.integers(f"synonyms.draw.{level}", count, sites) for level, count in enumerate(synonyms.counts)]
    ids_BQL = ids_BLQ.transpose(1, 2)
    own_BQL = ids_BQL.minimum(synonyms.codes_Q1 - 1).long()
    places_BQL = (own_BQL * synonyms.counts_Q1 + synonyms.first_Q1).add_(torch.stack(draws, dim=1))
    other_BQL = synonyms.flat_N.index_select(0, places_BQL.flatten()).view(places_BQL.shape)
    replaced_BQL = (torch.stack(chances, dim=1) < share) & (ids_BQL < synonyms.codes_Q1)
    return torch.where(replaced_BQL, other_BQL, ids_BQL).transpose(1, 2)


def swap_blocks(ids_BLQ: Tensor, corners_B22: Tensor, side_B: Tensor, plane: tuple[int, int]) -> Tensor:
    """Exchange the two square blocks of every sample that `swap_corners` drew. In a video, L = T * H * W, all frames have the same blocks.

    Both blocks are read from the original; a site in both blocks takes what the first block held.
    """
    height, width = plane
    move_B = (corners_B22[:, 1, 0] - corners_B22[:, 0, 0]) * width + (corners_B22[:, 1, 1] - corners_B22[:, 0, 1])
    offset_B22N = torch.arange(max(plane), device=ids_BLQ.device) - corners_B22[..., None]
    inside_B22N = (offset_B22N >= 0) & (offset_B22N < side_B[:, None, None, None])
    first_BHW, second_BHW = (inside_B22N[:, :, 0, :height, None] & inside_B22N[:, :, 1, None, :width]).unbind(1)
    move_B11 = move_B[:, None, None]
    # The site that each site takes, relative to itself: 0 outside of the blocks.
    source_BHW = torch.where(second_BHW, -move_B11, first_BHW * move_B11)
    source_BN = source_BHW.flatten(1) + torch.arange(height * width, device=ids_BLQ.device)
    samples, sites, levels = ids_BLQ.shape
    planes = levels * (sites // (height * width))
    ids_BMN = ids_BLQ.transpose(1, 2).reshape(samples, planes, height * width)
    taken_BMN = ids_BMN.gather(2, source_BN[:, None].expand(-1, planes, -1))
    return taken_BMN.view(samples, levels, sites).transpose(1, 2)


def swap_corners(numbers: Numbers, plane: tuple[int, int], max_share: float) -> tuple[Tensor, Tensor]:
    """Return the corners of both blocks, int64 [B, 2, 2], and their side [B] for `swap_blocks` (as in SeiT); side 0 means no swap.

    The side is floor(min(H, W) * U(0, max_share)). Both corners are uniform on [0, H - side - 1] x [0, W - side - 1]; they are drawn again,
    up to SWAP_TRIES times, until their Euclidean distance exceeds the side. Without such a pair the sample stays as it is.
    """
    side_B = (numbers.uniform("swap.side")[:, 0] * (max_share * min(plane))).long()
    height, width = plane
    room_BN = (height - side_B).clamp(min=1)[:, None]
    if width != height:
        room_BN = torch.stack([room_BN, (width - side_B).clamp(min=1)[:, None]], dim=2).repeat(1, 2 * SWAP_TRIES, 1).flatten(1)
    corners_BN = numbers.integers("swap.corners", room_BN, 4 * SWAP_TRIES)
    corners_BT22 = corners_BN.view(-1, SWAP_TRIES, 2, 2)
    distance_BT = (corners_BT22[:, :, 0] - corners_BT22[:, :, 1]).square().sum(-1)
    apart_BT = distance_BT > side_B[:, None].square()
    picked_B111 = apart_BT.int().argmax(1)[:, None, None, None]
    corners_B22 = corners_BT22.gather(1, picked_B111.expand(-1, 1, 2, 2))[:, 0]
    return corners_B22, side_B * apart_BT.any(1)


def mirrored_sites(layout: Layout) -> Tensor:
    """Return int64 [L]: the source site of each site, mirrored left to right: a grid, each frame of a video, each level of a pyramid."""
    parts, start = [], 0
    for shape in layout.scales or (layout.grid,):
        part_N = torch.arange(math.prod(shape)).view(shape).flip(-1).flatten()
        parts.append(part_N + start)
        start += len(part_N)
    return torch.cat(parts)


def has_plane(layout: Layout) -> bool:
    """Whether all samples share one grid. Blocks, boxes and crops need one."""
    return layout.kind in ("grid", "video") and not layout.variable


def can_mirror(layout: Layout) -> bool:
    """Whether sites have a left and a right, at the same place in all samples."""
    return layout.kind != "sequence" and not layout.variable


def meaningless(layout: Layout, wanted: bool, what: str) -> str | None:
    """Return a message for an operation of `augment.ops` that has no meaning in this layout; None where it has one."""
    kind = f"{layout.kind} of varying size" if layout.variable else layout.kind
    return None if wanted else f"{what} means nothing in a layout of kind {kind}; leave it out"


def refusal(layout: Layout, option: str, value: object) -> str:
    """Return the message for an operation that has no meaning in this layout."""
    kind = f"{layout.kind} of varying size" if layout.variable else layout.kind
    neutral = {"crop": "'centre'", "crop_share": "1.0"}.get(option, "0")
    return f"{option} is {value!r}, which means nothing in a layout of kind {kind}; set it to {neutral}, or use default_augmentations(spec)"
