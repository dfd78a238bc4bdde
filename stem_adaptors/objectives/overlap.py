"""Counts of the pixels that a segmenter gives the right class, and the intersection over union of each class.

Shapes: B samples, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.words import same_fields, short_repr
from tokenshards.stem_adaptors.ranks import Ranks

__all__ = ["Overlap", "OverlapCounts", "counted_pixels"]


def counted_pixels(logits_BCHW: Tensor, maps_BHW: Tensor) -> Tensor:
    """Return int64 [B, 3, C]: for each class the pixels that are right, predicted, and labelled. Negative labels count nowhere."""
    samples, classes = logits_BCHW.shape[:2]
    labels_BN, best_BN = maps_BHW.long().flatten(1), logits_BCHW.argmax(1).flatten(1)
    known_BN = labels_BN >= 0
    labels_BN = labels_BN.clamp_min(0)
    counts_B3C = torch.zeros(samples, 3, classes, dtype=torch.int64, device=maps_BHW.device)
    counts_B3C[:, 0].scatter_add_(1, labels_BN, (known_BN & (best_BN == labels_BN)).long())
    counts_B3C[:, 1].scatter_add_(1, best_BN, known_BN.long())
    counts_B3C[:, 2].scatter_add_(1, labels_BN, known_BN.long())
    return counts_B3C


class OverlapCounts:
    """Running sums over batches, on the device: pixels of each class, images and their loss."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.pixels_3C = torch.zeros(3, classes, dtype=torch.int64, device=device)
        """Pixels of each class that are right, predicted and labelled."""
        self.sums_2 = torch.zeros(2, dtype=torch.float64, device=device)
        """Images and their losses."""

    @torch.no_grad()
    def add(self, counts_B3C: Tensor, loss_B: Tensor, weights_B: Tensor) -> None:
        """Count a batch of which `weights_B` above 0 marks the samples that count."""
        real_B = weights_B > 0
        self.pixels_3C += (counts_B3C * real_B[:, None, None]).sum(0)
        self.sums_2 += torch.stack([real_B.sum().double(), (loss_B.double() * real_B).sum()])

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """Return copies for a checkpoint, summed over all ranks."""
        return {"pixels": ranks.sum(self.pixels_3C.clone()), "sums": ranks.sum(self.sums_2.clone())}

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the result of `tensors`."""
        self.pixels_3C += tensors["pixels"].to(self.pixels_3C)
        self.sums_2 += tensors["sums"].to(self.sums_2)

    def gather(self, ranks: Ranks) -> Overlap:
        """Return the overlap over all ranks."""
        found = self.tensors(ranks)
        images, loss = found["sums"].tolist()
        return Overlap(images=int(images), loss=loss / max(1.0, images), pixels_3C=found["pixels"].cpu().numpy())


@dataclass(frozen=True, slots=True, eq=False)  # its own __eq__: arrays have no truth value
class Overlap:
    """The measurement of a segmenter on images with masks."""

    images: int
    loss: float
    """Mean over images of the mean cross-entropy of their pixels."""
    pixels_3C: npt.NDArray[np.int64]
    """Pixels of each class that are right, predicted and labelled, over all images; pixels to be ignored are in none of the three."""

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other) if isinstance(other, Overlap) else NotImplemented

    def __repr__(self) -> str:
        return short_repr(
            self, miou=round(self.miou, 4), pixel_accuracy=round(self.pixel_accuracy, 4), images=self.images, loss=round(self.loss, 4)
        )

    @property
    def iou_C(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each class: right / (predicted + labelled - right); NaN for a class in no pixel of either."""
        right_C, predicted_C, labelled_C = self.pixels_3C.astype(np.float64)
        union_C = predicted_C + labelled_C - right_C
        iou_C: npt.NDArray[np.float64] = np.divide(right_C, union_C, out=np.full_like(union_C, np.nan), where=union_C > 0)
        return iou_C

    @property
    def miou(self) -> float:
        """Mean of `iou_C` over the classes that occur, labelled or predicted; 0 where none does."""
        iou_C = self.iou_C
        return float(np.nanmean(iou_C)) if np.isfinite(iou_C).any() else 0.0

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        return float(self.pixels_3C[0].sum() / max(1, int(self.pixels_3C[2].sum())))

    def to_json(self, classes: Sequence[int | str]) -> dict[str, Any]:
        """Return {miou, pixel_accuracy, images, loss, per_class: [{class, pixels, iou}]}; iou is None where a class does not occur."""
        per_class = [
            {"class": name, "pixels": int(labelled), "iou": None if np.isnan(iou) else float(iou)}
            for name, labelled, iou in zip(classes, self.pixels_3C[2], self.iou_C, strict=True)
        ]
        figures = {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy}
        return {**figures, "images": self.images, "loss": self.loss, "per_class": per_class}
