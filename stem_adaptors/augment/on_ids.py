"""Operations on ids.

Shapes: B samples, L sites, Q ids per site, N entries of a table.
"""

from __future__ import annotations

from torch import Tensor

from tokenshards.pipeline.errors import require
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment import index_ops, label_maps
from tokenshards.stem_adaptors.augment.index_ops import SWAP_TRIES, meaningless
from tokenshards.stem_adaptors.augment.numbers import Draw, Numbers
from tokenshards.stem_adaptors.augment.on_embeddings import CentreCrop, RandomCrop
from tokenshards.stem_adaptors.augment.operation import Data, Operation
from tokenshards.stem_adaptors.augment.state import TokenState

__all__ = ["CropIds", "Flip", "Swap", "Synonyms"]


class Synonyms(Operation):
    """Replaces a share of a sample's ids by codes like them (Token-EDA; SeiT, Park et al. 2023)."""

    name, stage = "synonyms", "ids"
    flat_N: Tensor
    first_Q1: Tensor
    codes_Q1: Tensor
    counts_Q1: Tensor

    def __init__(self, replace: float = 0.25, count: int = 5, metric: str = "auto") -> None:
        """`replace`: share of the ids; `count`: most similar codes to draw from; `metric`: `cosine`, `l2`, or `auto`: the tokenizer's."""
        super().__init__(replace=replace, count=count, metric=metric)
        require(0.0 <= replace <= 1.0, "synonyms: replace", replace, "a number from 0 to 1")
        require(count >= 1, "synonyms: count", count, "at least 1")
        require(metric in ("auto", "cosine", "l2"), "synonyms: metric", metric, "auto, cosine or l2")
        self.replace, self.count, self.metric = replace, count, metric
        self.counts: tuple[int, ...] = ()

    def prepare(self, spec: TokenizerSpec, tables: Tables, grid: tuple[int, ...]) -> None:
        """Find the synonyms of all codes. Raises ConfigError without a codebook."""
        metric = self.metric
        if metric == "auto":
            # Codes that are found by distance also differ in length. Cosine would call white and dark grey patches the best of synonyms.
            metric = "cosine" if spec.codebook is not None and spec.codebook.metric == "cosine" else "l2"
        found = index_ops.synonym_table(tables, self.count, metric)
        packed = index_ops.Synonyms.packed(found, index_ops.id_dtype(spec))
        self.counts = packed.counts
        for field in ("flat_N", "first_Q1", "codes_Q1", "counts_Q1"):
            self.register_buffer(field, getattr(packed, field), persistent=False)

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """Two numbers for each id."""
        levels, sites = range(data.layout.ids_per_site), data.layout.sites
        return (
            *(Draw(f"synonyms.replace.{level}", count=sites) for level in levels),
            *(Draw(f"synonyms.draw.{level}", "integers", sites) for level in levels),
        )

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Replace ids of all samples."""
        packed = index_ops.Synonyms(self.flat_N, self.first_Q1, self.codes_Q1, self.counts, self.counts_Q1)
        return state._replace(ids_BLQ=index_ops.replace_synonyms(state.ids_BLQ, numbers, packed, self.replace))


class Swap(Operation):
    """Exchanges two square blocks of sites (Token-EDA; SeiT, Park et al. 2023)."""

    name, stage = "swap", "ids"

    def __init__(self, max_share: float = 0.25) -> None:
        """`max_share`: longest side of a block as a share of the shorter side of the grid."""
        super().__init__(max_share=max_share)
        require(0.0 <= max_share <= 1.0, "swap: max_share", max_share, "a number from 0 to 1")
        self.max_share = max_share
        self.plane = (0, 0)

    def prepare(self, spec: TokenizerSpec, tables: Tables, grid: tuple[int, ...]) -> None:
        """Note the grid."""
        height, width = spec.layout.grid[-2:]
        self.plane = (height, width)

    def refusal(self, layout: Layout) -> str | None:
        """Blocks need a grid that all samples share."""
        return meaningless(layout, index_ops.has_plane(layout), "swap")

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """The side, and two corners for each try."""
        return Draw("swap.side"), Draw("swap.corners", "integers", 4 * SWAP_TRIES)

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Exchange two blocks of all samples."""
        corners_B22, sides_B = index_ops.swap_corners(numbers, self.plane, self.max_share)
        if state.maps_BHW is not None:
            state = state._replace(maps_BHW=label_maps.swapped(state.maps_BHW, corners_B22, sides_B, self.plane))
        return state._replace(ids_BLQ=index_ops.swap_blocks(state.ids_BLQ, corners_B22, sides_B, self.plane))


class Flip(Operation):
    """Mirrors samples left to right."""

    name, stage = "flip", "ids"
    sites_L: Tensor

    def prepare(self, spec: TokenizerSpec, tables: Tables, grid: tuple[int, ...]) -> None:
        """Note the mirrored sites."""
        self.register_buffer("sites_L", index_ops.mirrored_sites(spec.layout), persistent=False)

    def refusal(self, layout: Layout) -> str | None:
        """Left and right need a plane."""
        return meaningless(layout, index_ops.can_mirror(layout), "flip")

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Mirror all samples."""
        maps_BHW = None if state.maps_BHW is None else state.maps_BHW.flip(-1)
        return state._replace(ids_BLQ=state.ids_BLQ.index_select(1, self.sites_L), maps_BHW=maps_BHW)


class CropIds(Operation):
    """A crop that resamples nothing, of ids: where ids are what is wanted, no embedding and no nearest code is needed."""

    stage = "ids"

    def __init__(self, crop: CentreCrop | RandomCrop) -> None:
        """`crop`: the same crop of embeddings, whose place is drawn alike."""
        super().__init__(**crop.options)
        self.name, self.crop = crop.name, crop
        self.plane: tuple[int, ...] = ()

    def prepare(self, spec: TokenizerSpec, tables: Tables, grid: tuple[int, ...]) -> None:
        """Keep the grid."""
        self.plane = grid

    def refusal(self, layout: Layout) -> str | None:
        """Crops need a grid that all samples share."""
        return self.crop.refusal(layout)

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """The place, of a random crop."""
        return self.crop.draws(data)

    def out_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Return the cropped sides; frames stay."""
        return self.crop.out_grid(grid)

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Crop all samples."""
        whole = state.ids_BLQ.transpose(1, 2).reshape(len(state.ids_BLQ), -1, *self.plane)
        cropped = self.crop(state._replace(x=whole), numbers).embeddings
        return state._replace(ids_BLQ=cropped.flatten(2).transpose(1, 2))
