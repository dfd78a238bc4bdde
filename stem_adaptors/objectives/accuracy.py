"""Counts of a classifier's correct answers.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.words import same_fields, short_repr
from tokenshards.stem_adaptors.ranks import Ranks

__all__ = ["CONFUSION_CLASSES", "Accuracy", "Counts", "require_few_classes"]

TOP = 5
CONFUSION_CLASSES = 2_000
"""Most classes of a confusion matrix: 32 MB of counts. A drawing could not show more."""


def require_few_classes(classes: int) -> None:
    """Raise ConfigError where a confusion matrix would be too large."""
    if classes > CONFUSION_CLASSES:
        raise ConfigError(
            f"the confusion matrix of {classes:,} classes would have {classes**2:,} fields; expected at most {CONFUSION_CLASSES:,} "
            "classes. Leave --confusion out: the accuracy of each class is in the report (--json)"
        )


class Counts:
    """Running sums over batches on the device: samples, weighted loss, top-1 and top-5 hits by class; the confusion matrix if asked for.

    Samples of weight 0 (padding) or without a label are not counted. Without the matrix the memory is two numbers per class.
    """

    def __init__(self, classes: int, device: torch.device, *, confusion: bool = False) -> None:
        """Begin at 0. Raises ConfigError for a matrix of more than CONFUSION_CLASSES classes."""
        if confusion:
            require_few_classes(classes)
        self.classes = classes
        self.class_counts_2C = torch.zeros(2, classes, dtype=torch.int64, device=device)
        """Samples of each class, and the samples among them whose best class is right."""
        self.confusion_CC = torch.zeros(classes, classes, dtype=torch.int64, device=device) if confusion else None
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        """Samples, loss, top-5 hits."""

    @torch.no_grad()
    def add(self, logits_BC: Tensor, labels_B: Tensor, weights_B: Tensor, loss_B: Tensor | None = None) -> None:
        """Count a batch; `labels_B` are class indices, -1 where there is none."""
        real_B = (weights_B > 0) & (labels_B >= 0)
        labels_B = labels_B.clamp_min(0)
        top_BK = logits_BC.topk(min(TOP, self.classes), dim=1).indices
        hits_B = (top_BK == labels_B[:, None]).any(1) & real_B
        loss = logits_BC.new_zeros(()) if loss_B is None else (loss_B.float() * real_B).sum()
        self.sums += torch.stack([number.to(self.sums.dtype) for number in (real_B.sum(), loss, hits_B.sum())])
        right_B = real_B & (top_BK[:, 0] == labels_B)
        self.class_counts_2C.index_add_(1, labels_B, torch.stack([real_B, right_B]).long())
        if self.confusion_CC is not None:
            self.confusion_CC.view(-1).index_add_(0, labels_B * self.classes + top_BK[:, 0], real_B.long())

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """Return copies for a checkpoint, summed over all ranks."""
        return {"classes": ranks.sum(self.class_counts_2C.clone()), "sums": ranks.sum(self.sums.clone())}

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the result of `tensors`, or the confusion matrix that runs of the first version kept."""
        if "confusion" in tensors:
            confusion_CC = tensors["confusion"]
            counts_2C = torch.stack([confusion_CC.sum(dim=1), confusion_CC.diagonal()])
        else:
            counts_2C = tensors["classes"]
        self.class_counts_2C += counts_2C.to(self.class_counts_2C)
        self.sums += tensors["sums"].to(self.sums.dtype).to(self.sums.device)

    def gather(self, ranks: Ranks) -> Accuracy:
        """Return the accuracy over all ranks."""
        found = self.tensors(ranks)
        samples, loss, hits = found["sums"].tolist()
        return Accuracy(
            images=int(samples),
            loss=loss / max(1.0, samples),
            top5_hits=int(hits),
            class_counts_2C=found["classes"].cpu().numpy(),
            confusion_CC=None if self.confusion_CC is None else ranks.sum(self.confusion_CC.clone()).cpu().numpy(),
        )


@dataclass(frozen=True, slots=True, eq=False)  # its own __eq__: arrays have no truth value
class Accuracy:
    """The measurement of a classifier on labelled images."""

    images: int
    loss: float
    top5_hits: int
    class_counts_2C: npt.NDArray[np.int64]
    """Images of each class, and the images among them whose best class is right."""
    confusion_CC: npt.NDArray[np.int64] | None = None
    """Rows are true classes, columns predicted classes; None where no matrix was asked for."""

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other) if isinstance(other, Accuracy) else NotImplemented

    def __repr__(self) -> str:
        return short_repr(self, top1=round(self.top1, 4), top5=round(self.top5, 4), images=self.images, loss=round(self.loss, 4))

    @property
    def top1(self) -> float:
        """Share of images whose best class is right."""
        return int(self.class_counts_2C[1].sum()) / max(1, self.images)

    @property
    def top5(self) -> float:
        """Share of images whose class is among the best five; of fewer than five classes, all count."""
        return self.top5_hits / max(1, self.images)

    def to_json(self, classes: Sequence[int | str]) -> dict[str, Any]:
        """Return {top1, top5, images, loss, per_class: [{class, images, accuracy}]}; accuracy is None where a class has no images."""
        per_class = [
            {"class": name, "images": int(count), "accuracy": float(hits / count) if count else None}
            for name, count, hits in zip(classes, *self.class_counts_2C, strict=True)
        ]
        return {"top1": self.top1, "top5": self.top5, "images": self.images, "loss": self.loss, "per_class": per_class}
