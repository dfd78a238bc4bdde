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
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective
from tokenshards.stem_adaptors.objectives.overlap import Overlap
from tokenshards.stem_adaptors.objectives.segment import SegmentObjective
from tokenshards.stem_adaptors.precision import precision_name, recorded_precision
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.reporting.curves import confusion_png, load_pyplot
from tokenshards.stem_adaptors.training.evaluate import evaluate
from tokenshards.stem_adaptors.training.run_directory import Run, load_run, open_objective

__all__ = ["EvaluationReport", "evaluate_run", "require_confusion"]

SHOWN_CLASSES = 20
MOST_SCORES = 1 << 26
"""Most numbers of the scores of pixels at once: 256 MB."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Accuracy of a run, or overlap of a run that learned masks, with the names of its classes.

    >>> trained = tokenshards.train("photos.tokens", "reported", epochs=1, set={"model.depth": 1})
    >>> report = tokenshards.evaluate("reported", "more.tokens")
    >>> report.classes, report.left_out, report.precision
    (('class_0', 'class_1', 'class_2'), 0, 'fp32')
    >>> sorted(report.to_json())
    ['images', 'left_out', 'loss', 'per_class', 'precision', 'top1', 'top5']
    """

    measured: Accuracy | Overlap
    classes: Sequence[int | str]
    left_out: int
    """Images without a label, or with a class that the run does not know; of a run that learned masks, images without a known pixel."""
    precision: str = "fp32"
    """`fp32`, `bf16` or `fp16`: the format of the run's training, as far as the device has it."""

    def __repr__(self) -> str:
        figures = {"accuracy" if isinstance(self.measured, Accuracy) else "overlap": self.measured}
        return short_repr(self, **figures, classes=self.classes, left_out=self.left_out, precision=self.precision)

    @property
    def accuracy(self) -> Accuracy:
        """The accuracy of a classifier. Raises ConfigError for a run that learned masks."""
        if not isinstance(self.measured, Accuracy):
            raise ConfigError("the run learned masks, which have no accuracy of images; read report.overlap")
        return self.measured

    @property
    def overlap(self) -> Overlap:
        """The overlap of predicted and true pixels. Raises ConfigError for a classifier of images."""
        if not isinstance(self.measured, Overlap):
            raise ConfigError("the run is a classifier of images, which has no overlap of pixels; read report.accuracy")
        return self.measured

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of `evaluate --json`."""
        return {**self.measured.to_json(self.classes), "left_out": self.left_out, "precision": self.precision}

    def tables(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Return (title, rows) of each table."""
        found = self.measured.to_json(self.classes)
        of_images = isinstance(self.measured, Accuracy)
        names = {"top1": "top-1", "top5": "top-5"} if of_images else {"miou": "mean IoU", "pixel_accuracy": "pixels right"}
        rows: list[tuple[str, ...]] = [(name, f"{found[key]:.2%}") for key, name in names.items()]
        rows += [("images", f"{found['images']:,}"), ("precision", self.precision)]
        if self.left_out:
            rows.append(("left out", f"{self.left_out:,} images without a class that the run knows"))
        count, share = ("images", "accuracy") if of_images else ("pixels", "iou")
        measured = [row for row in found["per_class"] if row[share] is not None]
        worst = sorted(measured, key=lambda row: row[share])[:SHOWN_CLASSES]
        of = "of " if of_images else "IoU; pixels: "
        per_class: list[tuple[str, ...]] = [(str(row["class"]), f"{row[share]:.1%} {of}{row[count]:,}") for row in worst]
        title = "per class, the worst first" if len(worst) == len(measured) else f"the {len(worst)} worst of {len(measured)} classes"
        return [("accuracy" if of_images else "overlap", rows), (title, per_class)]

    def confusion_png(self) -> bytes:
        """Return the confusion matrix as an image. Raises ConfigError without matplotlib, and where no matrix was counted."""
        if self.accuracy.confusion_CC is None:
            raise ConfigError("no confusion matrix was counted; expected evaluate_run(…, confusion=True)")
        return confusion_png(self.accuracy.confusion_CC, self.classes)


def require_confusion(store: Store) -> None:
    """Raise ConfigError where no confusion matrix of a run can be drawn, before anything is tokenized or measured for it."""
    load_pyplot()
    run = load_run(store)
    if run.objective != ClassifyObjective.kind:
        raise ConfigError(f"--confusion draws a classifier of images; {store.url} learned {run.objective!r}. Leave --confusion out")
    require_few_classes(len(run.classes))


def evaluate_run(
    store: Store, data: TokenDataset, *, weights: str, device: torch.device, batch_size: int = 256, confusion: bool = False
) -> EvaluationReport:
    """Measure the weights `best`, `last` or `ema` of a run on a dataset. Classes are matched by name. `confusion`: also count the matrix.

    Raises OtherTokenizerError for tokens of another tokenizer, ConfigError where no class is shared or no image has a label.
    """
    objective, run = open_objective(store, weights, device)
    require_same_tokenizer(data, run.spec, f"the run {store.url}", f"Tokenize the images with --tokenizer {store.url}/tokenizer")
    if not isinstance(objective, ClassifyObjective | SegmentObjective):
        raise ConfigError(f"{store.url}: the run learned {run.objective!r}; expected a classifier or a segmenter, which `train` makes")
    align = objective.align(data, strict=False)
    config = LoaderConfig(batch_size=min(batch_size, _most_images(run)), order="sequential", end="pad")
    loader = TokenLoader(data, config, rank=0, world_size=1, device=device, label_maps=objective.reads_label_maps)
    precision = recorded_precision(run.train.precision, device)
    measured: Accuracy | Overlap
    if isinstance(objective, ClassifyObjective):
        measured = evaluate(objective, loader.epoch(0), align, precision, objective.measure(confusion=confusion)).accuracy(Ranks())
    else:
        measured = evaluate(objective, loader.epoch(0), align, precision, objective.measure()).overlap(Ranks())
    if not measured.images:
        raise ConfigError(
            f"{data.store.url}: no image has a class that the run knows, so nothing is measured; the run knows {shorten(list(run.classes))}"
        )
    return EvaluationReport(measured, run.classes, sample_count(data) - measured.images, precision_name(precision))


def _most_images(run: Run) -> int:
    """Return a limit for the images measured at once: the scores of their pixels take at most MOST_SCORES numbers."""
    return max(1, MOST_SCORES // ((1 if run.maps is None else run.maps.pixels) * len(run.classes)))
