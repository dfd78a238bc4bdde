"""Operations that mix the samples of a mix group.

Shapes: B samples, G mix groups, K quantiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenshards.pipeline.errors import require
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment import embed_ops, index_ops, label_maps
from tokenshards.stem_adaptors.augment.index_ops import meaningless
from tokenshards.stem_adaptors.augment.keys import all_rows
from tokenshards.stem_adaptors.augment.numbers import Draw, Numbers
from tokenshards.stem_adaptors.augment.operation import Data, Operation
from tokenshards.stem_adaptors.augment.state import Cut, TokenState
from tokenshards.stem_adaptors.config import CUTMIX_LABELS

__all__ = ["ColorAdapt", "CutMix", "Mixup"]


class ColorAdapt(Operation):
    """Gives a sample the channel statistics of its partner in the mix group (ColorAdapt; SeiT++, Lee et al. 2024)."""

    name, mixes = "color_adapt", True

    def refusal(self, layout: Layout) -> str | None:
        """Statistics over sites that do not exist would be wrong."""
        return meaningless(layout, not layout.variable, "color_adapt")

    def forward(self, state: TokenState, numbers: Numbers, hit_B: Tensor | None = None) -> TokenState:
        """Adapt the samples that are hit, by default all."""
        return state._replace(x=embed_ops.adapt_colour_(state.embeddings, hit_B, state.groups))

    def chosen(self, state: TokenState, numbers: Numbers, hit: Tensor) -> TokenState:
        """Adapt the samples that are hit."""
        return self.forward(state, numbers, hit)


class CutMix(Operation):
    """Fills one box in all samples of a mix group from their partners (Token-CutMix; SeiT, Park et al. 2023)."""

    name, by_group, mixes = "cutmix", True, True
    lengths_K2: Tensor

    def __init__(self, alpha: float = 1.0, labels: str = "area") -> None:
        """`alpha`: the share of the box is drawn from Beta(alpha, alpha).

        `labels`: "area" mixes labels by the share of sites really replaced; "attention" by what the model's attention carries to its head
        (Token-Label Alignment, Xiao et al. 2023): `TokenState.cut` tells the model what was replaced, and labels are mixed behind it.
        """
        super().__init__(alpha=alpha, **({} if labels == "area" else {"labels": labels}))
        require(alpha > 0.0, "cutmix: alpha", alpha, "more than 0")
        require(labels in CUTMIX_LABELS, "cutmix: labels", labels, " or ".join(CUTMIX_LABELS))
        self.alpha, self.follows_attention = alpha, labels == "attention"

    def prepare(self, spec: TokenizerSpec, tables: Tables, grid: tuple[int, ...]) -> None:
        """Make the table of sides: floor(side * sqrt(1 - lam)) for each quantile lam. So no device needs float64."""
        sides = [(side * (1 - embed_ops.beta_quantiles(self.alpha)).sqrt()).long() for side in grid[-2:]]
        self.register_buffer("lengths_K2", torch.stack(sides, dim=1), persistent=False)

    def refusal(self, layout: Layout) -> str | None:
        """Boxes need a grid that all samples share."""
        return meaningless(layout, index_ops.has_plane(layout), "cutmix")

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """The share and the centre of the box."""
        return Draw("lambda", "integers"), Draw("cutmix.y", "integers"), Draw("cutmix.x", "integers")

    def forward(self, state: TokenState, numbers: Numbers, hit_G: Tensor | None = None) -> TokenState:
        """Mix the groups that are hit, by default all."""
        words_G = numbers[: state.groups].integers("lambda", len(self.lengths_K2))[:, 0]
        sides_G2 = self.lengths_K2.index_select(0, words_G)
        if hit_G is not None:
            sides_G2 = sides_G2 * hit_G[:, None]  # a box without sites changes nothing, and asks the device for no value
        if self.follows_attention:
            return self._cut(state, numbers, sides_G2)
        x = state.embeddings
        edges_G4 = embed_ops.cutmix_box(numbers, (x.shape[-2], x.shape[-1]), sides_G2)
        maps_BHW = state.maps_BHW
        if maps_BHW is not None:
            maps_BHW = label_maps.with_boxes_filled(maps_BHW, edges_G4, (x.shape[-2], x.shape[-1]))
        x, targets_BC = embed_ops.cutmix_(x, state.targets_BC, edges_G4)
        return state._replace(x=x, targets_BC=targets_BC, maps_BHW=maps_BHW)

    def map_refusal(self) -> str | None:
        """Attention mixes labels of whole images."""
        return "cutmix(labels='attention') mixes labels of whole images; expected labels='area'" if self.follows_attention else None

    @staticmethod
    def _cut(state: TokenState, numbers: Numbers, sides_G2: Tensor) -> TokenState:
        """Fill the boxes, and keep both labels of each sample."""
        x = state.embeddings
        edges_G4 = embed_ops.cutmix_box(numbers, (x.shape[-2], x.shape[-1]), sides_G2)
        replaced = embed_ops.inside_boxes(x.shape, edges_G4)[:, 0].expand(-1, *x.shape[2:])
        cut = Cut(replaced, embed_ops.mirrored(state.targets_BC, state.groups))
        return state._replace(x=embed_ops.fill_boxes_(x, edges_G4), cut=cut)

    def chosen(self, state: TokenState, numbers: Numbers, hit: Tensor) -> TokenState:
        """Mix the groups that are hit."""
        return self.forward(state, numbers, hit)


class Mixup(Operation):
    """Blends all samples of a mix group with their partners."""

    name, by_group, mixes = "mixup", True, True
    quantiles_K: Tensor

    def __init__(self, alpha: float = 0.8) -> None:
        """`alpha`: the weight of a sample is drawn from Beta(alpha, alpha)."""
        super().__init__(alpha=alpha)
        require(alpha > 0.0, "mixup: alpha", alpha, "more than 0")
        self.alpha = alpha
        self.register_buffer("quantiles_K", embed_ops.beta_quantiles(alpha).float(), persistent=False)

    def refusal(self, layout: Layout) -> str | None:
        """Samples of different sizes have no site in common."""
        return meaningless(layout, not layout.variable, "mixup")

    def map_refusal(self) -> str | None:
        """A pixel has one class."""
        return "mixup blends two images in every pixel, and a pixel of a mask has one class; use cutmix"

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """The weight."""
        return (Draw("lambda", "integers"),)

    def forward(self, state: TokenState, numbers: Numbers, hit_G: Tensor | None = None) -> TokenState:
        """Mix the groups that are hit, by default all."""
        if hit_G is not None and not all_rows(hit_G.device) and not hit_G.any():
            return state
        words_G = numbers[: state.groups].integers("lambda", len(self.quantiles_K))[:, 0]
        lam_G = self.quantiles_K.index_select(0, words_G)
        if hit_G is not None:
            lam_G = torch.where(hit_G, lam_G, 1.0)
        x, targets_BC = embed_ops.mixup(state.embeddings, state.targets_BC, lam_G)
        return state._replace(x=x, targets_BC=targets_BC)

    def chosen(self, state: TokenState, numbers: Numbers, hit: Tensor) -> TokenState:
        """Mix the groups that are hit."""
        return self.forward(state, numbers, hit)
