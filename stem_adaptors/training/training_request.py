"""The input of a training (TrainRequest), its messages (Reporter) and its result (TrainResult)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.data.loader import TrainingData
from tokenshards.stem_adaptors.data.selection import Selection
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.segment_config import SegmentConfig

__all__ = ["Reporter", "TrainRequest", "TrainResult"]


class Reporter(Protocol):
    """Receives the messages of a training. On a cluster the reporter of a worker sends them to the terminal."""

    def say(self, message: str) -> None:
        """Print one line of text."""

    def step(self, epoch: int, step: int, steps: int, images_per_second: float, loss: float) -> None:
        """Show the place in the epoch and the loss of the last step."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Show the record of a finished epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train, on what data, and where the run is kept."""

    data: TrainingData
    val: TokenDataset | Selection | None
    out: Store
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    objective: str = "classify"
    """What to learn: a name of `objectives.OBJECTIVES`."""
    mask: MaskConfig | None = None
    """What a masked token modelling hides; None for other objectives."""
    segment: SegmentConfig | None = None
    """The head of a training on masks; None for other objectives."""
    pretrained: str | None = None
    resume: bool = False
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Of the store with the fitted TokenAdapt that `augment.ops` names. May hold credentials, so it is never shown."""

    @property
    def dataset(self) -> TokenDataset:
        """The whole dataset of the training set; the first dataset of a mix."""
        return self.data if isinstance(self.data, TokenDataset) else self.data.dataset


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The last record and the best epoch of a finished training."""

    record: dict[str, Any]
    """The record of the last epoch."""
    best_score: float | None
    """The score of the best epoch, such as top-1; None where nothing was measured."""
    best_epoch: int | None
