"""Counting what a classifier gets right, and the log of a training.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.stem_adaptors.ranks import Ranks

__all__ = ["Accuracy", "Counts", "MetricsLog"]

TOP = 5


class Counts:
    """Running sums over batches on the device: weighted loss, top-1 and top-5 hits, and the confusion matrix.

    Samples of weight 0 (padding) or without a label count nowhere.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.confusion_CC = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # samples, loss, top-5 hits

    @torch.no_grad()
    def add(self, logits_BC: Tensor, labels_B: Tensor, weights_B: Tensor, loss_B: Tensor | None = None) -> None:
        """Take in a batch; `labels_B` are class indices, -1 where there is none."""
        real_B = (weights_B > 0) & (labels_B >= 0)
        labels = labels_B.clamp_min(0)
        top_BK = logits_BC.topk(min(TOP, self.classes), dim=1).indices
        hits_B = (top_BK == labels[:, None]).any(1) & real_B
        loss = logits_BC.new_zeros(()) if loss_B is None else (loss_B.float() * real_B).sum()
        self.sums += torch.stack([real_B.sum().double(), loss.double(), hits_B.sum().double()])
        pairs = labels * self.classes + top_BK[:, 0]
        self.confusion_CC.view(-1).index_add_(0, pairs, real_B.long())

    def gather(self, ranks: Ranks) -> Accuracy:
        """Return the result over all ranks."""
        samples, loss, hits = ranks.sum(self.sums.clone()).tolist()
        confusion = ranks.sum(self.confusion_CC.clone()).cpu().numpy()
        return Accuracy(images=int(samples), loss=loss / max(1.0, samples), top5_hits=int(hits), confusion_CC=confusion)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How a classifier did on labelled images."""

    images: int
    loss: float
    top5_hits: int
    confusion_CC: npt.NDArray[np.int64]
    """Rows are true classes, columns the predicted ones."""

    @property
    def top1(self) -> float:
        """Share of images whose best class is right."""
        return float(np.trace(self.confusion_CC)) / max(1, self.images)

    @property
    def top5(self) -> float:
        """Share of images whose class is among the best five, or among all where there are fewer."""
        return self.top5_hits / max(1, self.images)

    def to_json(self, classes: Sequence[int | str]) -> dict[str, Any]:
        """Return {top1, top5, images, loss, per_class: [{class, images, accuracy}]}; accuracy is None where a class has no images."""
        counts_C = self.confusion_CC.sum(axis=1)
        per_class = [
            {"class": name, "images": int(count), "accuracy": float(self.confusion_CC[index, index] / count) if count else None}
            for index, (name, count) in enumerate(zip(classes, counts_C, strict=True))
        ]
        return {"top1": self.top1, "top5": self.top5, "images": self.images, "loss": self.loss, "per_class": per_class}


class MetricsLog:
    """One record per epoch, as JSON lines and as CSV."""

    def __init__(self, records: Sequence[dict[str, Any]] = ()) -> None:
        self.records = list(records)

    @classmethod
    def parse(cls, data: bytes) -> MetricsLog:
        """Read JSON lines; a last line that a crash cut short is left out."""
        records = []
        for line in data.decode("utf-8", "replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return cls(records)

    def before(self, epoch: int) -> MetricsLog:
        """Return the records of earlier epochs."""
        return MetricsLog([record for record in self.records if record["epoch"] < epoch])

    def to_jsonl(self) -> bytes:
        """Return one JSON object per line."""
        return b"".join(json.dumps(record).encode() + b"\n" for record in self.records)

    def to_csv(self) -> bytes:
        """Return a table with every column that any record has."""
        columns = list(dict.fromkeys(name for record in self.records for name in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue().encode()
