"""The measurement of a run on a dataset, as tables and as JSON.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.same_tokenizer import require_same_tokenizer
from tokenshards.stem_adaptors.data.selection import sample_count
from tokenshards.stem_adaptors.objectives.accuracy import Accuracy, require_few_classes
from tokenshards.stem_adaptors.precision import precision_name, recorded_precision
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.reporting.curves import confusion_png, load_pyplot
from tokenshards.stem_adaptors.training.evaluate import evaluate
from tokenshards.stem_adaptors.training.run_directory import load_run, open_classify_objective

__all__ = ["EvaluationReport", "evaluate_run", "require_confusion"]

SHOWN_CLASSES = 20


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Accuracy of a run, with the names of its classes.

    >>> trained = tokenshards.train("photos.tokens", "reported", epochs=1, set={"model.depth": 1})
    >>> report = tokenshards.evaluate("reported", "more.tokens")
    >>> report.classes, report.left_out, report.precision
    (('class_0', 'class_1', 'class_2'), 0, 'fp32')
    >>> sorted(report.to_json())
    ['images', 'left_out', 'loss', 'per_class', 'precision', 'top1', 'top5']
    """

    accuracy: Accuracy
    classes: Sequence[int | str]
    left_out: int
    """Images without a label, or with a class that the run does not know."""
    precision: str = "fp32"
    """`fp32`, `bf16` or `fp16`: the format of the run's training, as far as the device has it."""

    def __repr__(self) -> str:
        return short_repr(self, accuracy=self.accuracy, classes=self.classes, left_out=self.left_out, precision=self.precision)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of `evaluate --json`."""
        return {**self.accuracy.to_json(self.classes), "left_out": self.left_out, "precision": self.precision}

    def tables(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Return (title, rows) of each table."""
        found = self.accuracy.to_json(self.classes)
        rows: list[tuple[str, ...]] = [
            ("top-1", f"{found['top1']:.2%}"),
            ("top-5", f"{found['top5']:.2%}"),
            ("images", f"{found['images']:,}"),
            ("precision", self.precision),
        ]
        if self.left_out:
            rows.append(("left out", f"{self.left_out:,} images without a class that the run knows"))
        measured = [row for row in found["per_class"] if row["images"]]
        worst = sorted(measured, key=lambda row: row["accuracy"])[:SHOWN_CLASSES]
        per_class: list[tuple[str, ...]] = [(str(row["class"]), f"{row['accuracy']:.1%} of {row['images']:,}") for row in worst]
        title = "per class, the worst first" if len(worst) == len(measured) else f"the {len(worst)} worst of {len(measured)} classes"
        return [("accuracy", rows), (title, per_class)]

    def confusion_png(self) -> bytes:
        """Return the confusion matrix as an image. Raises ConfigError without matplotlib, and where no matrix was counted."""
        if self.accuracy.confusion_CC is None:
            raise ConfigError("no confusion matrix was counted; expected evaluate_run(…, confusion=True)")
        return confusion_png(self.accuracy.confusion_CC, self.classes)


def require_confusion(store: Store) -> None:
    """Raise ConfigError where no confusion matrix of a run can be drawn, before anything is tokenized or measured for it."""
    load_pyplot()
    require_few_classes(len(load_run(store).classes))


def evaluate_run(
    store: Store, data: TokenDataset, *, weights: str, device: torch.device, batch_size: int = 256, confusion: bool = False
) -> EvaluationReport:
    """Measure the weights `best`, `last` or `ema` of a run on a dataset. Classes are matched by name. `confusion`: also count the matrix.

    Raises OtherTokenizerError for tokens of another tokenizer, ConfigError where no class is shared or no image has a label.
    """
    objective, run = open_classify_objective(store, weights, device)
    require_same_tokenizer(data, run.spec, f"the run {store.url}", f"Tokenize the images with --tokenizer {store.url}/tokenizer")
    align = objective.align(data, strict=False)
    loader = TokenLoader(data, LoaderConfig(batch_size=batch_size, order="sequential", end="pad"), rank=0, world_size=1, device=device)
    precision = recorded_precision(run.train.precision, device)
    counts = evaluate(objective, loader.epoch(0), align, precision, objective.measure(confusion=confusion))
    accuracy = counts.accuracy(Ranks())
    if not accuracy.images:
        raise ConfigError(
            f"{data.store.url}: no image has a class that the run knows, so nothing is measured; the run knows {shorten(list(run.classes))}"
        )
    return EvaluationReport(accuracy, run.classes, sample_count(data) - accuracy.images, precision_name(precision))
