"""Operations on embeddings of single samples: crops, noise, dropped sites.

Shapes: B samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tokenshards.pipeline.errors import require
from tokenshards.pipeline.shards.spec import Layout
from tokenshards.stem_adaptors.augment import crops, embed_ops, index_ops, label_maps
from tokenshards.stem_adaptors.augment.crops import CROP_TRIES
from tokenshards.stem_adaptors.augment.index_ops import meaningless
from tokenshards.stem_adaptors.augment.numbers import Draw, Numbers
from tokenshards.stem_adaptors.augment.operation import Data, Operation
from tokenshards.stem_adaptors.augment.state import TokenState

__all__ = ["CentreCrop", "Crop", "DropSites", "Noise", "RandomCrop", "RandomResizedCrop"]


class Crop(Operation):
    """A crop to a share of the grid's sides."""

    def __init__(self, share: float = 0.875, **options: float) -> None:
        super().__init__(share=share, **options)
        require(0.0 < share <= 1.0, f"{self.name}: share", share, "above 0, at most 1")
        self.share = share

    def refusal(self, layout: Layout) -> str | None:
        """Crops need a grid that all samples share."""
        return meaningless(layout, index_ops.has_plane(layout), self.name)

    def out_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Return the cropped sides; frames stay."""
        *frames, height, width = grid
        return *frames, cropped(height, self.share), cropped(width, self.share)

    def size(self, state: TokenState) -> tuple[int, int]:
        """Return height and width of the result."""
        height, width = self.out_grid(tuple(state.embeddings.shape[2:]))[-2:]
        return height, width


def with_maps_cropped(state: TokenState, boxes_B4: Tensor, size: tuple[int, int], grid: tuple[int, int] | None = None) -> TokenState:
    """Return the state, whose embeddings are not cropped yet, with its label maps cropped. `grid`: sites before the crop."""
    if state.maps_BHW is None:
        return state
    sites = grid or (state.embeddings.shape[-2], state.embeddings.shape[-1])
    return state._replace(maps_BHW=label_maps.cropped(state.maps_BHW, boxes_B4, sites, size))


def cropped(side: int, share: float) -> int:
    """Return a share of a side as an even number of sites, at least 2. A side below 2, or a share of 1, gives the side itself."""
    return side if share == 1 else min(side, max(2, 2 * round(side * share / 2)))


class RandomResizedCrop(Crop):
    """Resamples a random box of each sample (Token-RRC; SeiT, Park et al. 2023)."""

    name = "rrc"

    def __init__(self, share: float = 0.875, scale_min: float = 0.08, ratio_max: float = 4 / 3) -> None:
        """`share`: side of the output as a share of the grid's; `scale_min`: least share of the area; `ratio_max`: largest aspect ratio."""
        super().__init__(share, scale_min=scale_min, ratio_max=ratio_max)
        require(0.0 < scale_min <= 1.0, "rrc: scale_min", scale_min, "above 0, at most 1")
        require(ratio_max >= 1.0, "rrc: ratio_max", ratio_max, "at least 1")
        self.scale_min, self.ratio_max = scale_min, ratio_max

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """Area and ratio for each try, then the place."""
        return Draw("crop.box", count=2 * CROP_TRIES), Draw("crop.y", "integers"), Draw("crop.x", "integers")

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Crop all samples."""
        x, size = state.embeddings, self.size(state)
        boxes_B4 = self._boxes(numbers, (x.shape[-2], x.shape[-1]))
        return with_maps_cropped(state, boxes_B4, size)._replace(x=crops.resample(x, boxes_B4, size))

    def looked_up(self, look_up: Callable[[slice], Tensor], shape: torch.Size, state: TokenState, numbers: Numbers) -> TokenState:
        """Crop embeddings of this shape that are looked up piece by piece, so that they are never in memory as a whole."""
        grid, (height, width) = (shape[-2], shape[-1]), self.out_grid(tuple(shape[2:]))[-2:]
        boxes_B4 = self._boxes(numbers, grid)
        x = crops.resample_in_pieces(look_up, crops.pieces(shape), boxes_B4, (height, width))
        return with_maps_cropped(state, boxes_B4, (height, width), grid)._replace(x=x)

    def _boxes(self, numbers: Numbers, grid: tuple[int, int]) -> Tensor:
        return crops.crop_boxes(numbers, grid, scale_min=self.scale_min, ratio_max=self.ratio_max)


class RandomCrop(Crop):
    """Cuts a window at a random place out of each sample."""

    name = "random_crop"

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """The place."""
        return Draw("crop.y", "integers"), Draw("crop.x", "integers")

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Crop all samples."""
        x, size = state.embeddings, self.size(state)
        boxes_B4 = crops.window_boxes(numbers, (x.shape[-2], x.shape[-1]), size)
        return with_maps_cropped(state, boxes_B4, size)._replace(x=crops.cut_windows(x, boxes_B4, size))


class CentreCrop(Crop):
    """Cuts out the centre, as in evaluation."""

    name = "centre_crop"

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Crop all samples."""
        x, size = state.embeddings, self.size(state)
        if size != tuple(x.shape[-2:]):
            if state.maps_BHW is not None:
                state = state._replace(maps_BHW=label_maps.centre_cropped(state.maps_BHW, (x.shape[-2], x.shape[-1]), size))
            x = crops.centre_crop(x, size).movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
        return state._replace(x=x)


class Noise(Operation):
    """Adds noise to embeddings (Emb-Noise; SeiT, Park et al. 2023)."""

    name = "noise"
    pool: Tensor

    def __init__(self, std: float = 1.0, channel_std: float = 1.0) -> None:
        """`std`: standard deviation of each value's own noise; `channel_std`: of the noise that all sites of a channel share."""
        super().__init__(std=std, channel_std=channel_std)
        require(std >= 0.0, "noise: std", std, "0 or more")
        require(channel_std >= 0.0, "noise: channel_std", channel_std, "0 or more")
        self.std, self.channel_std = std, channel_std
        self.register_buffer("pool", embed_ops.noise_pool(), persistent=False)

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """A number for each channel, and the place of a vector of the pool for each site; until version 2, a number for each value.

        Raises ConfigError for more channels than the pool has.
        """
        require(data.channels <= embed_ops.MOST_CHANNELS, "noise: channels", data.channels, f"at most {embed_ops.MOST_CHANNELS:,}")
        sites, channel = math.prod(data.grid), Draw("noise.channel", "normal", data.channels)
        if self.version > 2:
            return channel, Draw("noise.site", "integers", sites)
        return channel, Draw("noise.value", "normal", sites * data.channels)

    def forward(self, state: TokenState, numbers: Numbers, hit_B: Tensor | None = None) -> TokenState:
        """Add noise to the samples that are hit, by default to all."""
        stds, pool = {"channel_std": self.channel_std, "std": self.std}, self.pool if self.version > 2 else None
        return state._replace(x=embed_ops.add_noise_(state.embeddings, numbers, hit_B, mask=state.mask, pool=pool, **stds))

    def chosen(self, state: TokenState, numbers: Numbers, hit: Tensor) -> TokenState:
        """Add noise to the samples that are hit."""
        return self.forward(state, numbers, hit)


class DropSites(Operation):
    """Sets the embedding of a share of the sites to zero, which is the mean where embeddings are standardised."""

    name = "drop_sites"

    def __init__(self, share: float = 0.1) -> None:
        """`share`: share of the sites of every sample."""
        super().__init__(share=share)
        require(0.0 <= share <= 1.0, "drop_sites: share", share, "a number from 0 to 1")
        self.share = share

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """A number for each site."""
        return (Draw("dropout", count=math.prod(data.grid)),)

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Drop sites of all samples."""
        return state._replace(x=embed_ops.drop_sites_(state.embeddings, numbers, self.share))
