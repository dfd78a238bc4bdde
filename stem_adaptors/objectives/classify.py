"""The objective of a classifier: augmentation, model and loss of a batch.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.augment import TokenTransform
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.class_names import class_map, relabelled
from tokenshards.stem_adaptors.data.labels import require_labels
from tokenshards.stem_adaptors.data.loader import TrainingData
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, VisionTransformer, build_classifier
from tokenshards.stem_adaptors.objectives.accuracy import Accuracy, Counts
from tokenshards.stem_adaptors.objectives.base import Align, Answers, Blueprint, Objective
from tokenshards.stem_adaptors.ranks import Ranks

__all__ = ["ClassifyMeasure", "ClassifyObjective"]


class ClassifyMeasure:
    """Counts right answers; see `Counts`."""

    def __init__(self, classes: int, device: torch.device, *, confusion: bool = False) -> None:
        """Begin at 0. Raises ConfigError for a confusion matrix of too many classes."""
        self._counts = Counts(classes, device, confusion=confusion)

    def add(self, batch: Batch, answers: Answers) -> None:
        """Count a batch."""
        self._counts.add(answers.outputs.detach(), batch.labels_B, batch.weights_B, answers.loss_B.detach())

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """Return copies for a checkpoint, summed over all ranks."""
        return self._counts.tensors(ranks)

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the sums of a checkpoint."""
        self._counts.add_tensors(tensors)

    def record(self, ranks: Ranks) -> dict[str, float]:
        """Return loss, top1, top5 and the number of images."""
        found = self.accuracy(ranks)
        return {"loss": found.loss, "top1": found.top1, "top5": found.top5, "images": found.images}

    def accuracy(self, ranks: Ranks) -> Accuracy:
        """Return the accuracy over all ranks, with the counts of each class."""
        return self._counts.gather(ranks)


class ClassifyObjective(Objective):
    """A classifier of whole images: soft targets and cross-entropy, as in SeiT (Park et al. 2023)."""

    kind = "classify"
    training_figures = ("loss", "top1")
    validation_figures = ("loss", "top1", "top5", "images")
    score = "top1"

    model: TokenClassifier

    @classmethod
    def build(cls, blueprint: Blueprint) -> ClassifyObjective:
        """Return a new classifier with its augmentation. Raises ConfigError too for labels by attention and a model without it."""
        spec, tables, classes = blueprint.spec, blueprint.tables, len(blueprint.classes)
        statistics = None if blueprint.model.raw_embeddings else blueprint.statistics
        transform = TokenTransform(
            spec, tables, blueprint.augment, classes, blueprint.label_smoothing, statistics=statistics, draws=blueprint.draws
        )
        model = build_classifier(spec, tables, blueprint.statistics, blueprint.model, classes, transform.out_grid, seed=blueprint.seed)
        if transform.needs_label_shares:
            model.require_label_shares()
        return cls(model, transform, blueprint.classes)

    @classmethod
    def require(cls, data: TrainingData) -> None:
        """Raise ConfigError where no image has a label."""
        require_labels(data, "Without labels nothing can be learned")

    def __init__(self, model: TokenClassifier, transform: TokenTransform, classes: Sequence[int | str]) -> None:
        super().__init__()
        self.model = model
        self.transform = transform
        self.class_names, self.classes = tuple(classes), len(classes)
        self._compiled = False

    def forward(self, batch: Batch) -> Answers:
        """Return the loss of each augmented sample and its logits [B, C]."""
        return Answers(*self.transform.answers(self.model, self.transform.inputs(self.model, batch)))

    def answers(self, batch: Batch) -> Answers:
        """Return cross-entropy and logits [B, C] of whole samples, after the centre crop. A sample without a label counts as class 0."""
        ids_BLQ = batch.ids_BLQ
        if self._compiled:
            ids_BLQ = ids_BLQ.long()  # compilers know little of uint16
            self.model.embedding.check(ids_BLQ)
        logits_BC = self._logits(ids_BLQ, batch.mask_BL, batch.shapes_BD)
        return Answers(F.cross_entropy(logits_BC, batch.labels_B.clamp_min(0), reduction="none"), logits_BC)

    def weights_B(self, batch: Batch) -> Tensor:
        """Return the weight of each sample in the loss: 0 for padding and for samples without a label."""
        return batch.weights_B * (batch.labels_B >= 0)

    def measure(self, *, confusion: bool = False) -> ClassifyMeasure:
        """Return counts that begin at 0. Raises ConfigError for a confusion matrix of too many classes."""
        return ClassifyMeasure(self.classes, self.device, confusion=confusion)

    def align(self, dataset: TokenDataset, *, strict: bool = True) -> Align:
        """Return what gives batches of a dataset the labels of this classifier, by the names of classes.

        Raises ConfigError where no image has a label, where no class is shared, or, if `strict`, where the dataset has a class that the
        classifier does not know. Otherwise samples of such classes lose their labels.
        """
        require_labels(dataset, "Without labels nothing can be measured; `predict` needs none")
        mapping = class_map(dataset.classes, self.class_names, dataset.store.url, missing_is_error=strict)
        return functools.partial(relabelled, mapping.to(self.device))

    def compile_model(self, **options: Any) -> None:
        """Let torch compile a training step, augmentation and model as one graph, and a measurement as another one.

        The options are those of torch.compile. Models of timm may fall into several graphs.
        """
        fullgraph = isinstance(self.model.backbone, VisionTransformer)
        self._compiled = True
        self.transform.compile(fullgraph=fullgraph, **options)
        self._logits = torch.compile(self._logits, fullgraph=fullgraph, dynamic=False, **options)  # type: ignore[method-assign]

    def _logits(self, ids_BLQ: Tensor, mask_BL: Tensor | None, shapes_BD: Tensor | None) -> Tensor:
        logits_BC: Tensor = self.model(ids_BLQ, mask_BL=mask_BL, shapes_BD=shapes_BD).float()
        return logits_BC

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device
