"""The sizes of TokenAdapt's two networks, as tokenadapt.json has them."""

from __future__ import annotations

from dataclasses import dataclass

from tokenshards.pipeline.errors import require

__all__ = ["HEAD_WIDTH", "MAP_FEATURES", "AdaptSizes"]

HEAD_WIDTH = 64
MAP_FEATURES = 6
"""Of a map: 1, the four entries of its linear part without its scale, and the scale."""


@dataclass(frozen=True, kw_only=True)
class AdaptSizes:
    """The sizes of the two networks. The defaults are the paper's."""

    out_grid: tuple[int, int]
    """(h, w) of the result: the central window of the grid, as evaluation cuts it out."""
    width: int = 384
    heads: int = 6
    """Attention heads of 64 channels each."""
    hidden: int = 1536
    """Width between the two layers of the MLP."""
    skip: bool = False
    """Whether code vectors also pass beside the two transformers, and the reverse network knows the map. The published networks have no
    such path; with it a fit begins where moving the grid directly ends, and how a code looks in a mirror is learned at once."""
    tables: bool = False
    """Whether each level has a table that adds to the logits by the id at the nearest site of the image, with rows for upright maps and for
    mirrored ones: what an id becomes depends first on the id. Needs the skip, whose logits then become sharper or softer with the map. The
    published networks have neither."""
    reach: int = 0
    """Sites around its own of which the first layer of the reverse network reads the cells. The published networks read none; what lies
    between two sites of the image, and what is beside it there, is learned much sooner with one."""
    colour: float = 0.0
    """Largest change of brightness, contrast and saturation that the reverse network learned to make; it needs the skip."""

    @property
    def features(self) -> int:
        """Numbers that tell the reverse network what happened: those of the map, and the three colour changes."""
        return MAP_FEATURES + (3 if self.colour else 0)

    def __post_init__(self) -> None:
        require(
            0.0 <= self.colour < 1.0 and (self.skip or not self.colour), "token_adapt: colour", self.colour, "0 to less than 1, with skip"
        )
        require(self.skip or not self.tables, "token_adapt: tables", self.tables, "false without the skip")
        require(self.reach >= 0, "token_adapt: reach", self.reach, "0 or more")
        require(self.width >= 4 and self.width % 4 == 0, "token_adapt: width", self.width, "a multiple of 4")
        require(self.heads >= 1, "token_adapt: heads", self.heads, "at least 1")
        require(self.hidden >= 1, "token_adapt: hidden", self.hidden, "at least 1")
        require(min(self.out_grid) >= 1, "token_adapt: out_grid", self.out_grid, "two positive numbers")
