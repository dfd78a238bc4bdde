"""Drawings of a training and of a classifier, as PNG bytes. Needs matplotlib (extra `plot`).

Shapes: C classes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.optional_packages import optional_import

__all__ = ["confusion_png", "curves_png", "load_pyplot"]

NAMED_CLASSES = 40
"""Class names are written beside a confusion matrix of up to this many classes."""
_TOP1 = ("top1", "top-1 accuracy")


def curves_png(records: Sequence[dict[str, Any]]) -> bytes:
    """Return loss and score over epochs, side by side: accuracy, of a pre-training that of hidden ids, of masks the mean overlap.

    `records` are those of metrics.jsonl.
    """
    plt = load_pyplot()
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = [record["epoch"] for record in records]
    scores = {"masked_accuracy": "share of hidden tokens that are right", "miou": "mean intersection over union"}
    score = next(((name, title) for name, title in scores.items() if any(f"train_{name}" in record for record in records)), _TOP1)
    for axis, suffix, title in ((loss, "loss", "loss"), (accuracy, *score)):
        for prefix, name in (("train", "training, augmented"), ("val", "validation"), ("ema_val", "validation, averaged weights")):
            values = [record.get(f"{prefix}_{suffix}") for record in records]
            if any(value is not None for value in values):
                axis.plot(epochs, values, label=name, marker="." if len(epochs) < 30 else None)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    return _png(plt, figure)


def confusion_png(confusion_CC: npt.NDArray[np.int64], classes: Sequence[int | str]) -> bytes:
    """Return the confusion matrix, each row as shares of its true class."""
    plt = load_pyplot()
    counts_C = confusion_CC.sum(axis=1, keepdims=True)
    shares_CC = confusion_CC / np.maximum(1, counts_C)
    size = min(14.0, 4.0 + 0.25 * len(classes))
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    image = axis.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true class")
    if len(classes) <= NAMED_CLASSES:
        axis.set_xticks(range(len(classes)), [str(name) for name in classes], rotation=90)
        axis.set_yticks(range(len(classes)), [str(name) for name in classes])
    if len(classes) <= 12:
        for row in range(len(classes)):
            for column in range(len(classes)):
                if confusion_CC[row, column]:
                    colour = "white" if shares_CC[row, column] > 0.5 else "black"
                    axis.text(column, row, str(confusion_CC[row, column]), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axis, label="share of the true class")
    return _png(plt, figure)


def load_pyplot() -> Any:
    """Return matplotlib's pyplot; raises ConfigError where matplotlib is not installed."""
    with optional_import("this drawing needs matplotlib", extra="plot"):
        import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _png(plt: Any, figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
