"""Stochastic depth with random choices that belong to the sample, so that they are the same on any number of ranks.

Shapes: B samples, N places in a model where a branch may be skipped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DropPath", "draw_paths", "drop_paths_of"]


class DropPath(nn.Module):
    """Skips its branch in a `share` of the samples during training, and scales the branch up in the other samples."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.draw_B: Tensor | None = None
        """A number in [0, 1) for each sample of the next batch. None draws the numbers from torch's generator of the device."""

    def extra_repr(self) -> str:
        """Return what printing the module shows."""
        return f"share={self.share:g}"

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch [B, …], with zeros in the samples that skip it."""
        if not self.training or self.share == 0.0:
            return branch
        keep = 1.0 - self.share
        shape = (len(branch), *[1] * (branch.ndim - 1))
        if self.draw_B is None:
            kept = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(keep)
        else:
            kept = (self.draw_B >= self.share).to(branch.dtype).view(shape)
        return branch * (kept / keep)


def drop_paths_of(model: nn.Module) -> list[DropPath]:
    """Return the modules of a model that may skip a branch, in order."""
    return [module for module in model.modules() if isinstance(module, DropPath) and module.share > 0]


def draw_paths(places: list[DropPath], draws_BN: Tensor | None) -> None:
    """Give each place its numbers for the next batch; None leaves the choice to torch's generator again."""
    for index, place in enumerate(places):
        place.draw_B = None if draws_BN is None else draws_BN[:, index]
