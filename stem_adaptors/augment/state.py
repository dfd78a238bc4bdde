"""The samples of a step: as a transform gets them, as operations pass them on, and as a model gets them.

Shapes: B samples, R some of them, G mix groups, L sites, Q ids per site, D channels, C classes, P places of a model that draw, H x W pixels
of a label map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tokenshards.pipeline.words import short_repr

__all__ = ["Cut", "StepInputs", "TokenState", "Transformed"]


class Cut(NamedTuple):
    """What CutMix took from the partners of samples whose labels are mixed behind the model (`cutmix(labels="attention")`)."""

    replaced: Tensor
    """bool [B, *sites], True at sites that come from the partner."""
    targets_BC: Tensor
    """float32 soft targets of the partners."""

    def __repr__(self) -> str:
        return short_repr(self, **self._asdict())

    def nothing(self, count: int) -> Cut:
        """Return the cuts of `count` samples of which no site was replaced."""
        return Cut(*(found.new_zeros(count, *found.shape[1:]) for found in self))


class TokenState(NamedTuple):
    """Samples on their way through a transform. Operations return a new state; they may write into `x`, which nobody else holds."""

    ids_BLQ: Tensor
    """int32, or int64 where the vocabulary needs that. Padded sites of a ragged batch hold an id outside of the vocabulary."""
    targets_BC: Tensor
    """float32 soft targets."""
    groups: int = 1
    """G: sample i belongs to mix group i mod G."""
    x: Tensor | None = None
    """float32 [B, D, *sites] embeddings; None in operations on ids."""
    mask: Tensor | None = None
    """True at sites that exist, [B, *sites]; None where all do."""
    vectors: Callable[[Tensor], Tensor] | None = None
    """The model's code vectors: ids [B, N, Q] of any N sites -> float32 [B, N, D]."""
    cut: Cut | None = None
    """Where not None, `targets_BC` are those of the samples before CutMix."""
    maps_BHW: Tensor | None = None
    """Label maps, the class of each pixel, which operations move as they move sites; None where no pixels are learned."""

    def __repr__(self) -> str:
        return short_repr(self, **self._asdict())

    @property
    def embeddings(self) -> Tensor:
        """The embeddings. Raises TypeError in an operation on ids."""
        if self.x is None:
            raise TypeError("there are no embeddings yet in an operation on ids; let its stage be 'embeddings'")
        return self.x

    def with_ids(self, ids_BNQ: Tensor, grid: tuple[int, ...]) -> TokenState:
        """Return the samples with new ids over a grid, and the model's code vectors of these ids as embeddings."""
        if self.vectors is None:
            raise TypeError("this state has no code vectors; only a TokenTransform gives them")
        x_BND = self.vectors(ids_BNQ)
        return self._replace(ids_BLQ=ids_BNQ, x=x_BND.view(len(x_BND), *grid, x_BND.shape[-1]).movedim(-1, 1))

    def take(self, rows: slice | Tensor, groups: int = 1) -> TokenState:
        """Return some of the samples, as `groups` mix groups, without what other operations have cut."""
        x, mask, maps_BHW = self.x, self.mask, self.maps_BHW
        return TokenState(
            self.ids_BLQ[rows],
            self.targets_BC[rows],
            groups,
            None if x is None else x[rows],
            None if mask is None else mask[rows],
            self.vectors,
            maps_BHW=None if maps_BHW is None else maps_BHW[rows],
        )

    def put(self, rows: Tensor, part: TokenState, taken: TokenState) -> TokenState:
        """Return this state with the samples of `part` in those rows. What `part` still shares with `taken`, as it was taken, stays."""
        # Targets of many classes are large. Embeddings may have been changed in place.
        x = self.x if self.x is None or part.x is None else self.x.index_copy(0, rows, part.x)
        ids_BLQ = self.ids_BLQ if part.ids_BLQ is taken.ids_BLQ else self.ids_BLQ.index_copy(0, rows, part.ids_BLQ)
        same = part.targets_BC is taken.targets_BC
        maps_BHW = self.maps_BHW
        if maps_BHW is not None and part.maps_BHW is not None and part.maps_BHW is not taken.maps_BHW:
            maps_BHW = maps_BHW.index_copy(0, rows, part.maps_BHW)
        return self._replace(
            ids_BLQ=ids_BLQ,
            targets_BC=self.targets_BC if same else self.targets_BC.index_copy(0, rows, part.targets_BC),
            x=x,
            maps_BHW=maps_BHW,
        )

    def where(self, hit_B: Tensor, other: TokenState) -> TokenState:
        """Return `other` in the samples that are hit, and this state in the rest."""
        cut = self.cut
        if other.cut is not None and other.cut is not cut:
            rest = other.cut.nothing(len(hit_B)) if cut is None else cut
            cut = Cut(*(_where(hit_B, new, old) for new, old in zip(other.cut, rest, strict=True)))
        return self._replace(
            cut=cut,
            ids_BLQ=_where(hit_B, other.ids_BLQ, self.ids_BLQ),
            targets_BC=_where(hit_B, other.targets_BC, self.targets_BC),
            x=None if self.x is None or other.x is None else _where(hit_B, other.x, self.x),
            maps_BHW=None if self.maps_BHW is None or other.maps_BHW is None else _where(hit_B, other.maps_BHW, self.maps_BHW),
        )


class StepInputs(NamedTuple):
    """A batch as tensors alone."""

    ids_BLQ: Tensor
    labels_B: Tensor
    positions_B: Tensor
    epoch_21: Tensor
    """int32 [2, 1] digest of seed and epoch."""
    mask: Tensor | None
    shapes_BD: Tensor | None
    maps_BHW: Tensor | None = None

    def __repr__(self) -> str:
        return short_repr(self, **self._asdict())


class Transformed(NamedTuple):
    """A batch that is ready for the backbone."""

    x: Tensor
    """float32 embeddings."""
    targets_BC: Tensor
    mask: Tensor | None
    draws_BP: Tensor | None
    """Numbers for the model's stochastic depth; None where it needs none."""
    cut: Cut | None = None
    """What CutMix with labels by attention replaced; `targets_BC` are then those before CutMix."""
    maps_BHW: Tensor | None = None
    """Label maps of what `x` shows."""

    def __repr__(self) -> str:
        return short_repr(self, **self._asdict())


def _where(hit_B: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return old if new is old else torch.where(hit_B.view(-1, *[1] * (new.ndim - 1)), new, old)
