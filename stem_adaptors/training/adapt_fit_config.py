"""Settings of a fit of TokenAdapt's two networks."""

from __future__ import annotations

from dataclasses import dataclass

from tokenshards.pipeline.errors import require
from tokenshards.stem_adaptors.augment.adapt_maps import MapRanges
from tokenshards.stem_adaptors.augment.adapt_sizes import AdaptSizes
from tokenshards.stem_adaptors.augment.on_embeddings import cropped

__all__ = ["AdaptFitConfig"]


@dataclass(frozen=True, kw_only=True)
class AdaptFitConfig:
    """Settings of a fit. Width and heads are the paper's (SeiT++, Lee et al. 2024)."""

    width: int = 384
    heads: int = 6
    share: float = 0.875
    """Side of the result as a share of the grid's, rounded to an even number of sites, as for `rrc`."""
    epochs: int = 30
    """Passes over the images."""
    views: int = 0
    """Distinct views of an image, after which they repeat, so that a slow tokenizer encodes each once; 0: a new view in every epoch."""
    colour: float = 0.0
    """Largest change of brightness, contrast and saturation to learn too; 0 for none."""
    batch: int = 8
    """Images of a step. A site is a sample, so that few images are enough."""
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        require(0.0 < self.share <= 1.0, "--share", self.share, "above 0, at most 1")
        for name in ("epochs", "batch"):
            require(getattr(self, name) >= 1, f"--{name}", getattr(self, name), "at least 1")
        require(self.views >= 0, "--views", self.views, "0 or more")
        require(self.learning_rate > 0, "--learning-rate", self.learning_rate, "more than 0")

    @property
    def ranges(self) -> MapRanges:
        """How images are moved: without a crop half of the time, so that maps which keep the scale are learned too."""
        return MapRanges(crop=0.5, colour=self.colour)

    def sizes(self, grid: tuple[int, ...]) -> AdaptSizes:
        """Return the sizes for a grid."""
        out_grid = cropped(grid[0], self.share), cropped(grid[1], self.share)
        return AdaptSizes(
            out_grid=out_grid,
            width=self.width,
            heads=self.heads,
            hidden=4 * self.width,
            skip=True,
            tables=True,
            reach=1,
            colour=self.colour,
        )
