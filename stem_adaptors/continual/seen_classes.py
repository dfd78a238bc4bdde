"""A classifier of all classes that knows only those that have come: training and answers are over the first classes of its head.

Shapes: B samples, C classes, S classes seen so far, N images, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.selection import Selection
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, VisionTransformer
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective
from tokenshards.stem_adaptors.training.checkpoints import load_model
from tokenshards.stem_adaptors.training.timed_trainer import TimedTrainer, clock_of
from tokenshards.stem_adaptors.training.training_request import TrainRequest

__all__ = ["SeenTrainer", "features_of", "limit_to"]

TOGETHER = 100
"""Images whose features are computed at once."""


def limit_to(objective: ClassifyObjective, seen: int) -> None:
    """Let loss, targets and answers be over the first `seen` classes: a softmax whose other logits are minus infinity.

    Smoothed targets give the other classes nothing either, and the weights of their part of the head get no gradient.
    """

    def first_logits(head: nn.Module, inputs: Any, logits_BC: Tensor) -> Tensor:
        return logits_BC[:, :seen]

    objective.classes = objective.transform.classes = seen
    _head(objective.model).register_forward_hook(first_logits)


class SeenTrainer(TimedTrainer):
    """A training on the classes that have come, from the weights of the step before."""

    def __init__(
        self, request: TrainRequest, device: torch.device, *, seen: int, weights: Mapping[str, Tensor] | None, **timed: Any
    ) -> None:
        """`weights`: None for new ones. `timed`: what else TimedTrainer takes. Raises ConfigError for weights that are not finite."""
        super().__init__(request, device, **timed)
        limit_to(cast(ClassifyObjective, self.objective), seen)
        self._measure = self.objective.measure()
        if weights is not None:
            load_model(self.model, weights, "the weights of the step before")

    def train(self) -> None:
        """Train until the seconds are spent. They count from here: a step in a new process, which imports much first, gets as many."""
        self._begun = clock_of(self.device)
        super().train()


@torch.inference_mode()
def features_of(model: TokenClassifier, data: Selection, device: torch.device) -> npt.NDArray[np.float32]:
    """Return what the head of the model reads of each image [N, D], in the order of the rows of the selection."""
    read: list[Tensor] = []
    handle = _head(model).register_forward_pre_hook(lambda head, inputs: read.append(inputs[0]))
    config = LoaderConfig(batch_size=min(TOGETHER, len(data)), order="sequential", end="pad")
    features = []
    model.eval()
    try:
        for batch in TokenLoader(data, config, device=device):
            model(batch.ids_BLQ, mask_BL=batch.mask_BL, shapes_BD=batch.shapes_BD)
            features.append(read.pop()[batch.weights_B > 0].float().cpu().numpy())
    finally:
        handle.remove()
    return np.concatenate(features)


def _head(model: TokenClassifier) -> nn.Module:
    return cast(VisionTransformer, model.backbone).head
