"""The seam between the trainer and what is learned: the trainer knows an objective only through the classes of this module.

Shapes: B samples of this rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy.typing as npt
from torch import Tensor, nn

from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.config import AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.loader import TrainingData
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models.embedding import Statistics
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.segment_config import SegmentConfig

__all__ = ["Align", "Answers", "Blueprint", "Measure", "Objective"]

Align = Callable[[Batch], Batch]
"""Changes the batches of a measured dataset to the terms of the objective, such as its class indices."""


class Answers(NamedTuple):
    """What one forward pass gives. A plain tuple, because DistributedDataParallel looks for tensors in tuples."""

    loss_B: Tensor
    """float32 loss of each sample, before weights."""
    outputs: Tensor
    """What the objective's measure reads, such as logits [B, C]."""


class Measure(Protocol):
    """Running sums over batches, on the device."""

    def add(self, batch: Batch, answers: Answers) -> None:
        """Count a batch."""

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """Return copies for a checkpoint, summed over all ranks. Every rank must call this."""

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the result of `tensors` from a checkpoint."""

    def record(self, ranks: Ranks) -> dict[str, float]:
        """Return the figures by name; `loss` is one of them. Every rank must call this."""


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """Everything that an objective is built from. Equal blueprints give equal first weights."""

    spec: TokenizerSpec
    tables: Mapping[str, npt.NDArray[Any]]
    """The codebook of the dataset; empty where its tokenizer has none."""
    statistics: Statistics | None
    """Mean and standard deviation of each embedding channel."""
    classes: tuple[int | str, ...]
    model: ModelConfig
    augment: AugmentConfig
    mask: MaskConfig | None = None
    """What a masked token modelling hides; None for other objectives."""
    segment: SegmentConfig | None = None
    """The head of a training on masks; None for other objectives."""
    maps: MaskFormat | None = None
    """Format of the label maps of a training on masks; None for other objectives."""
    label_smoothing: float = 0.0
    seed: int = 0
    draws: int
    """Version of the rules for random draws, see `config.DRAWS`."""


class Objective(nn.Module, ABC):
    """What a training learns: model, loss of a batch, figures, and which of two results is better.

    One module holds all of it, so that DistributedDataParallel and torch.compile see one forward pass. A checkpoint holds the tensors of
    `model` and of the current measure; an objective has no other state.
    """

    kind: ClassVar[str]
    """The name in run.json."""
    training_figures: tuple[str, ...]
    """Figures of the training set that a record keeps."""
    validation_figures: tuple[str, ...]
    """Figures of the validation set that a record keeps."""
    score: ClassVar[str]
    """The figure of the validation set that chooses the best weights."""
    higher_is_better: ClassVar[bool] = True
    reads_label_maps: ClassVar[bool] = False
    """Whether batches must hold the class of each pixel."""

    model: nn.Module
    """The model that is optimised, averaged and saved."""

    @classmethod
    @abstractmethod
    def build(cls, blueprint: Blueprint) -> Self:
        """Return a new objective with the first weights of `blueprint.seed`. Raises ConfigError where the parts do not fit."""

    @classmethod
    @abstractmethod
    def require(cls, data: TrainingData) -> None:
        """Raise ConfigError where nothing can be learned from the data."""

    @classmethod
    def classes_of(cls, data: TrainingData) -> tuple[int | str, ...]:
        """Return the names of the classes that are learned: by default those of the images."""
        return data.classes

    @abstractmethod
    def forward(self, batch: Batch) -> Answers:
        """Return the answers to an augmented batch."""

    @abstractmethod
    def answers(self, batch: Batch) -> Answers:
        """Return the answers to a batch as it is, for a measurement."""

    @abstractmethod
    def weights_B(self, batch: Batch) -> Tensor:
        """Return the weight of each sample in the loss: 0 for padding, and for samples that teach nothing."""

    @abstractmethod
    def measure(self) -> Measure:
        """Return sums that begin at 0, on the device of the model."""

    @abstractmethod
    def align(self, dataset: TokenDataset, *, strict: bool = True) -> Align:
        """Return what makes batches of the dataset fit this objective.

        Raises ConfigError where the dataset cannot be measured, or, if `strict`, where a part of it cannot.
        """

    def prepare(self, sample: Callable[[int], Iterator[Batch]]) -> Sequence[str]:
        """Learn what the first step of a new training needs from some samples; `sample(count)` reads about so many, on the CPU.

        Return the names of the model's buffers that hold it: a checkpoint has them. By default nothing is needed.
        """
        return ()

    def compile_model(self) -> None:
        """Let torch compile what a step computes."""
        self.model.compile()

    def better(self, score: float, best: float | None) -> bool:
        """Whether a score is better than the best one so far."""
        if best is None:
            return True
        return score > best if self.higher_is_better else score < best
