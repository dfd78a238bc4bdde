"""What `curve` measures, and how many images a budget of bytes holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.errors import ConfigError, require
from tokenshards.stem_adaptors.comparison.compare_config import ImageSources
from tokenshards.stem_adaptors.data.subsets import CHOICES

__all__ = ["FEWER", "JPEG", "TOKENS", "CurveRequest", "Stock"]

TOKENS, FEWER, JPEG = "tokens", "fewer images", "jpeg"
"""Names of the sides."""


@dataclass(frozen=True, kw_only=True)
class CurveRequest:
    """All settings of a curve."""

    data_url: str
    val_url: str
    budgets: tuple[int, ...]
    """Bytes, ascending."""
    images: ImageSources | None = None
    """The images themselves, for two more sides; None for tokens alone."""
    choice: str = "stratified"
    minutes: float = 1.0
    """Of each training."""
    seeds: int = 3
    """Trainings of each side and budget; each draws its own images."""
    out_url: str
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
    device: str = "cpu"
    run: RunConfig

    def __post_init__(self) -> None:
        require(len(self.budgets) > 0, "--bytes", "missing", "sizes such as 300kB,1MB")
        require(self.choice in CHOICES, "--choice", self.choice, " or ".join(CHOICES))
        require(0 < self.minutes < math.inf, "--minutes", self.minutes, "more than 0")
        require(1 <= self.seeds <= 100, "--seeds", self.seeds, "1 to 100")
        require(self.device.partition(":")[0] in ("cpu", "cuda"), "--device", self.device, "cpu, cuda, or cuda:NUMBER")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stock:
    """Images that are stored, and the bytes that they take together."""

    bytes: int
    images: int
    labelled: int
    """Of the images; only these are learned from."""

    @property
    def mean(self) -> float:
        """Bytes of an image."""
        return self.bytes / self.images

    def fitting(self, budget: int) -> int:
        """Return how many labelled images of mean bytes a budget holds."""
        return min(self.labelled, budget * self.images // self.bytes)

    def budget_for(self, images: int) -> int:
        """Return the smallest budget that holds so many images."""
        return -(-images * self.bytes // self.images)

    def require_room(self, option: str, budgets: tuple[int, ...], least: int, of_what: str) -> None:
        """Raise ConfigError where a budget of an option holds fewer than `least` images, `of_what` in words."""
        if self.fitting(budgets[0]) < least:
            raise ConfigError(
                f"{option} has {budgets[0]:,} bytes, room for {self.fitting(budgets[0]):,} images of {self.mean:,.1f} bytes; expected room "
                f"for {of_what}. Give at least {self.budget_for(least)} bytes"
            )
