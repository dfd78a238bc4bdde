"""The objective of masks: each pixel of an image gets a class.

Shapes: B samples, C classes, H x W pixels of a label map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.stem_adaptors.augment import TokenTransform
from tokenshards.stem_adaptors.augment.transform import StepInputs
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.label_maps import map_classes, map_format
from tokenshards.stem_adaptors.data.loader import TrainingData
from tokenshards.stem_adaptors.models.segmenter import TokenSegmenter, build_segmenter
from tokenshards.stem_adaptors.objectives.base import Align, Answers, Blueprint, Objective
from tokenshards.stem_adaptors.objectives.overlap import Overlap, OverlapCounts, counted_pixels
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.segment_config import SegmentConfig

__all__ = ["SegmentMeasure", "SegmentObjective"]

NO_CLASS = -1
"""The label of a pixel that is ignored, in the loss and in the figures."""


class SegmentMeasure:
    """Counts pixels; see `OverlapCounts`."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._counts = OverlapCounts(classes, device)

    def add(self, batch: Batch, answers: Answers) -> None:
        """Count a batch; images without a labelled pixel do not count."""
        labelled_B = answers.outputs[:, 2].sum(dim=1) > 0
        self._counts.add(answers.outputs, answers.loss_B.detach(), batch.weights_B * labelled_B)

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """Return copies for a checkpoint, summed over all ranks."""
        return self._counts.tensors(ranks)

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the sums of a checkpoint."""
        self._counts.add_tensors(tensors)

    def record(self, ranks: Ranks) -> dict[str, float]:
        """Return loss, mean intersection over union, pixel accuracy and the number of images."""
        found = self.overlap(ranks)
        return {"loss": found.loss, "miou": found.miou, "pixel_accuracy": found.pixel_accuracy, "images": found.images}

    def overlap(self, ranks: Ranks) -> Overlap:
        """Return the overlap over all ranks, with the counts of each class."""
        return self._counts.gather(ranks)


class SegmentObjective(Objective):
    """Cross-entropy of each pixel with the class that the image's mask gives it.

    The loss of an image is the mean over its labelled pixels, so that an image with many ignored pixels weighs as much as any other.
    `outputs` of its answers are the counts of `counted_pixels`.
    """

    kind = "segment"
    training_figures = ("loss", "miou")
    validation_figures = ("loss", "miou", "pixel_accuracy", "images")
    score = "miou"
    reads_label_maps = True

    model: TokenSegmenter

    @classmethod
    def build(cls, blueprint: Blueprint) -> SegmentObjective:
        """Return a new segmenter with its augmentation. Raises ConfigError where tokens, model or operations do not fit masks."""
        spec, tables, classes = blueprint.spec, blueprint.tables, len(blueprint.classes)
        if blueprint.maps is None:
            raise ConfigError("a training on masks got no format of the masks; expected that of the dataset")
        statistics = None if blueprint.model.raw_embeddings else blueprint.statistics
        transform = TokenTransform(spec, tables, blueprint.augment, statistics=statistics, draws=blueprint.draws)
        transform.require_maps_fit()
        head, grid = blueprint.segment or SegmentConfig(), transform.out_grid
        model = build_segmenter(spec, tables, blueprint.statistics, blueprint.model, head, classes, grid, seed=blueprint.seed)
        return cls(model, transform, blueprint.classes, blueprint.maps, blueprint.label_smoothing)

    @classmethod
    def require(cls, data: TrainingData) -> None:
        """Raise ConfigError where no pixel has a class."""
        map_classes(data)

    @classmethod
    def classes_of(cls, data: TrainingData) -> tuple[int | str, ...]:
        """Return the numbers of the classes of pixels, from 0 to the largest that occurs."""
        return tuple(range(map_classes(data)))

    def __init__(
        self, model: TokenSegmenter, transform: TokenTransform, classes: Sequence[int | str], maps: MaskFormat, smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.model, self.transform, self.maps, self.smoothing = model, transform, maps, smoothing
        self.class_names, self.classes = tuple(classes), len(classes)

    def forward(self, batch: Batch) -> Answers:
        """Return the loss of each augmented sample and its counted pixels."""
        return Answers(*self._trained(self.transform.inputs(self.model, self._marked(batch))))

    def answers(self, batch: Batch) -> Answers:
        """Return loss and counted pixels of whole samples, after the centre crop."""
        return Answers(*self._measured(self.transform.inputs(self.model, self._marked(batch), augmented=False)))

    def weights_B(self, batch: Batch) -> Tensor:
        """Return the weight of each sample in the loss: 0 for padding and for images of which every pixel is ignored."""
        return batch.weights_B * (_maps(batch) != self.maps.ignore).flatten(1).any(1)

    def measure(self) -> SegmentMeasure:
        """Return counts that begin at 0."""
        return SegmentMeasure(self.classes, next(self.model.parameters()).device)

    def align(self, dataset: TokenDataset, *, strict: bool = True) -> Align:
        """Return what gives batches of a dataset the mark of ignored pixels that this objective knows.

        Raises ConfigError where the dataset has no masks or masks of another size, or, if `strict`, a class that was not learned: such
        pixels are ignored otherwise.
        """
        theirs, where = map_format(dataset), dataset.store.url
        if (theirs.height, theirs.width) != (self.maps.height, self.maps.width):
            raise ConfigError(
                f"{where}: its masks have {theirs.height} x {theirs.width} pixels; the training set's have "
                f"{self.maps.height} x {self.maps.width}. Tokenize both with one tokenizer"
            )
        if strict and dataset.mask_classes > self.classes:
            raise ConfigError(
                f"{where}: its masks have the class {dataset.mask_classes - 1}; those of the training set have 0 to {self.classes - 1}. "
                "Expected no class that was not learned: mark such pixels with --mask-ignore when you tokenize"
            )

        def aligned(batch: Batch) -> Batch:
            maps_BHW = _maps(batch).int()
            return replace(batch, maps_BHW=maps_BHW.masked_fill(maps_BHW >= self.classes, self.maps.ignore))

        return aligned

    def compile_model(self, **options: Any) -> None:
        """Let torch compile a training step, augmentation and model as one graph, and a measurement as another one."""
        self.transform.use_one_graph()
        self._trained = torch.compile(self._trained, fullgraph=True, dynamic=False, **options)  # type: ignore[method-assign]
        self._measured = torch.compile(self._measured, fullgraph=True, dynamic=False, **options)  # type: ignore[method-assign]

    def logits(self, batch: Batch) -> Tensor:
        """Return logits [B, C, H, W] of the pixels of whole samples, after the centre crop."""
        inputs = self.transform.inputs(self.model, self._marked(batch), augmented=False)
        return self._whole(inputs)[0]

    def _trained(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        found = self.transform.transformed(self.model, inputs)
        maps_BHW = _maps(found)
        return self._scored(self.model.segment(found.x, maps_BHW.shape[1:], found.draws_BP), maps_BHW, self.smoothing)

    def _measured(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        return self._scored(*self._whole(inputs), 0.0)

    def _whole(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """Return logits and label maps of whole samples, after the centre crop."""
        x = self.transform.evaluation(self.model.embed(inputs.ids_BLQ))
        maps_BHW = self.transform.evaluation_maps(_maps(inputs))
        return self.model.segment(x, maps_BHW.shape[1:]), maps_BHW

    @staticmethod
    def _scored(logits_BCHW: Tensor, maps_BHW: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        labels_BHW = maps_BHW.long()
        loss_BHW = F.cross_entropy(logits_BCHW, labels_BHW, ignore_index=NO_CLASS, reduction="none", label_smoothing=smoothing)
        pixels_B = (labels_BHW != NO_CLASS).flatten(1).sum(1)
        loss_B = loss_BHW.flatten(1).sum(1) / pixels_B.clamp_min(1)
        return loss_B, counted_pixels(logits_BCHW.detach(), labels_BHW)

    def _marked(self, batch: Batch) -> Batch:
        """Return the batch with NO_CLASS in place of the value that its format ignores."""
        maps_BHW = _maps(batch).int()
        return replace(batch, maps_BHW=maps_BHW.masked_fill(maps_BHW == self.maps.ignore, NO_CLASS))


def _maps(holder: Any) -> Tensor:
    """Return the label maps of a batch, of inputs or of a transformed batch. Raises ConfigError where there are none."""
    maps_BHW: Tensor | None = holder.maps_BHW
    if maps_BHW is None:
        raise ConfigError("the batch has no masks; expected batches of a TokenLoader(…, label_maps=True)")
    return maps_BHW
