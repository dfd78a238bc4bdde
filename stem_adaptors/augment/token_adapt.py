"""TokenAdapt as an operation: images that only exist as tokens are mirrored, rotated, shifted, sheared and cropped, and are tokens again.

Shapes: B samples, R of them, Q ids per site.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError, require
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment.adapt_file import load_adapter
from tokenshards.stem_adaptors.augment.adapt_maps import MapRanges, random_colours, random_maps
from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter
from tokenshards.stem_adaptors.augment.index_ops import meaningless
from tokenshards.stem_adaptors.augment.keys import all_rows
from tokenshards.stem_adaptors.augment.numbers import Draw, Numbers
from tokenshards.stem_adaptors.augment.on_embeddings import cropped
from tokenshards.stem_adaptors.augment.operation import Data, Operation
from tokenshards.stem_adaptors.augment.state import TokenState

__all__ = ["TokenAdapt"]

ROWS = 8
"""Samples that a CPU computes at a time, always as many: a sample's result must not depend on how many come with it."""


class TokenAdapt(Operation):
    """Moves whole images in the cells between the two networks of a fitted TokenAdapt (SeiT++, Lee et al. 2024); ids come back.

    It starts from the ids of whole samples, so it stands first among the operations on embeddings, or first in a half of `half_batch`.
    """

    name, gives_ids, reads_ids = "token_adapt", True, True

    def __init__(
        self,
        file: str,
        share: float = 0.875,
        flip: float = 0.5,
        affine: float = 0.5,
        degrees: float = 30.0,
        shift: float = 0.2,
        shear: float = 15.0,
        crop: float = 1.0,
        scale_min: float = 0.08,
        ratio_max: float = 4 / 3,
        colour: float = 0.0,
        sha256: str = "",
    ) -> None:
        """`file`: the directory of `fit-tokenadapt`; `share`: side of the result as a share of the grid's; the rest: see `MapRanges`.

        `sha256`: digest of the fitted file, which a training records; "" for any.
        """
        ranges = {"flip": flip, "affine": affine, "degrees": degrees, "shift": shift, "shear": shear, "crop": crop}
        ranges |= {"scale_min": scale_min, "ratio_max": ratio_max, "colour": colour}
        super().__init__(file=file, share=share, **ranges, sha256=sha256)
        require(0.0 < share <= 1.0, "token_adapt: share", share, "above 0, at most 1")
        self.file, self.share, self.sha256 = file, share, sha256
        self.ranges = MapRanges(**ranges)
        self._adapter: list[TokenAdapter] = []  # in a list: no state dict holds what the fitted file holds

    @property
    def adapter(self) -> TokenAdapter | None:
        """The two networks, frozen; None before they are read."""
        return self._adapter[0] if self._adapter else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Take the networks along to another device."""
        for adapter in self._adapter:
            adapter._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def refusal(self, layout: Layout) -> str | None:
        """Images need a grid that all samples share."""
        return meaningless(layout, layout.kind == "grid" and not layout.variable, self.name)

    def prepare(self, spec: TokenizerSpec, tables: Tables, grid: tuple[int, ...]) -> None:
        """Remember the tokenizer: only training needs the networks. Raises ConfigError without a codebook, and after a crop."""
        if spec.codebook is None:
            raise ConfigError(f"token_adapt: tokenizer family {spec.family!r} has no codebook; leave token_adapt out")
        if tuple(grid) != tuple(spec.layout.grid):
            raise ConfigError(f"token_adapt gets a grid of {grid}; expected whole samples of {spec.layout.grid}. Put it before the crop")
        self._spec, self._tables = spec, tables
        self._grid = grid[0], grid[1]

    def out_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sides of the result, as those of `rrc`."""
        return cropped(grid[0], self.share), cropped(grid[1], self.share)

    def map_refusal(self) -> str | None:
        """The networks move images where no map can follow."""
        return "token_adapt moves images inside of a network, and masks cannot follow; use flip and rrc"

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """Mirror, rotation, shift, shear, and the crop."""
        return self.ranges.draws()

    def load(self) -> None:
        """Read the networks, where no training has given them. Raises what `load_from` raises."""
        if self.adapter is None:
            self.load_from(Store(self.file), "")

    def load_from(self, store: Store, prefix: str) -> None:
        """Read the networks from a store.

        Raises NotFoundError where they are not there, OtherTokenizerError for another tokenizer, ConfigError where they are not those that
        a training recorded, or make another grid.
        """
        adapter, about = load_adapter(store, prefix, self._spec, self._tables)
        if self.sha256 and about.sha256 != self.sha256:
            raise ConfigError(
                f"token_adapt: {store.url}/{prefix} holds {about.sha256[:12]}…; expected the fitted file {self.sha256[:12]}…. Give that one"
            )
        made, wanted = about.sizes.out_grid, self.out_grid(self._grid)
        if made != wanted:
            raise ConfigError(
                f"token_adapt: {store.url}/{prefix} was fitted for {made} of {self._grid} sites; share={self.share:g} makes {wanted}. Give "
                f"the share of the fit, or fit with --share {self.share:g}"
            )
        if self.ranges.colour > about.sizes.colour:
            raise ConfigError(
                f"token_adapt: colour is {self.ranges.colour:g}; {store.url}/{prefix} was fitted for {about.sizes.colour:g} at most. Give "
                f"less, or fit with --colour {self.ranges.colour:g}"
            )
        self._adapter = [adapter]

    @torch.no_grad()
    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Move all samples."""
        if not self._adapter:
            raise ConfigError("token_adapt has no networks yet; call `load` of the transform before its first batch")
        [adapter], ids_BLQ = self._adapter, state.ids_BLQ
        maps_B23, colours_B3 = random_maps(numbers, self.ranges, self._grid), random_colours(numbers, self.ranges)
        if all_rows(ids_BLQ.device):
            found_BNQ = adapter.ids(ids_BLQ, maps_B23, colours_B3)
        else:
            parts = []
            for start in range(0, len(ids_BLQ), ROWS):
                rows = torch.arange(start, start + ROWS).clamp_max(len(ids_BLQ) - 1)  # the last sample fills a piece up
                own = None if colours_B3 is None else colours_B3[rows]
                parts.append(adapter.ids(ids_BLQ[rows], maps_B23[rows], own))
            found_BNQ = torch.cat(parts)[: len(ids_BLQ)]
        return state.with_ids(found_BNQ, adapter.sizes.out_grid)
