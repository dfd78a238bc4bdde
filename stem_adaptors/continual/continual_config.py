"""What `continual` measures: the settings, and the names of the sides."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.errors import require
from tokenshards.stem_adaptors.comparison.compare_config import ImageSources

__all__ = ["ALL", "CHOICES", "FILES", "NONE", "ContinualRequest"]

NONE, ALL, FILES = "no memory", "all kept", "files"
"""Names of sides, beside those of a curve."""
CHOICES = ("herding", "random")
"""How images of the memory are chosen."""


@dataclass(frozen=True, kw_only=True)
class ContinualRequest:
    """All settings of a continual learning."""

    data_url: str
    val_url: str
    budgets: tuple[int, ...]
    """Bytes of the replay memory, ascending."""
    steps: int = 5
    """Groups of classes, one for each step."""
    images: ImageSources | None = None
    """The images themselves, for two more sides; None for tokens alone."""
    choice: str = "herding"
    references: bool = True
    """Whether there are sides without a memory and with all images."""
    minutes: float = 1.0
    """Of the training of each step."""
    seeds: int = 3
    """Each orders the classes in its own way."""
    out_url: str
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
    device: str = "cpu"
    run: RunConfig

    def __post_init__(self) -> None:
        require(len(self.budgets) > 0, "--replay", "missing", "sizes such as 20kB,100kB")
        require(self.steps >= 2, "--steps", self.steps, "at least 2, since a single group of classes is an ordinary training")
        require(self.choice in CHOICES, "--choice", self.choice, " or ".join(CHOICES))
        require(0 < self.minutes < math.inf, "--minutes", self.minutes, "more than 0")
        require(1 <= self.seeds <= 100, "--seeds", self.seeds, "1 to 100")
        require(self.device.partition(":")[0] in ("cpu", "cuda"), "--device", self.device, "cpu, cuda, or cuda:NUMBER")
