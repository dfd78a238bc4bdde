"""`tokenshards.train`: a classifier is trained, and reported. The command `train` calls the same code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenshards.pipeline.commands.python_calls import as_function
from tokenshards.pipeline.storage.store import display_url
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.commands.learning import learn
from tokenshards.stem_adaptors.commands.train_options import TrainOptions

__all__ = ["TrainReport", "run_training", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """The result of a training, and what was decided on the way.

    >>> report = tokenshards.train("photos.tokens", "probe", pretrained="run", train_part="head", epochs=1, set={"model.depth": 1})
    >>> report.said[0]
    'no --val given: nothing is measured, and the last weights count as the best'
    >>> report.settings["train"].train_part, len(report.records)
    ('head', 1)
    """

    run: str
    """URL of the run directory."""
    best_top1: float | None
    """Accuracy on the validation set, 0 to 1; None without one."""
    best_epoch: int | None
    """Counted from 1, as in every record."""
    record: dict[str, Any]
    """Measurements of the last epoch."""
    records: tuple[dict[str, Any], ...]
    """Measurements of each epoch that this call trained."""
    settings: Mapping[str, Any]
    """The configs `model`, `augment`, `loader` and `train` that were used."""
    said: tuple[str, ...]
    """What a terminal would have shown, without the lines of epochs."""
    rank: int = 0

    def __repr__(self) -> str:
        model, epochs, said = self.settings["model"].name, self.record.get("epoch"), f"{len(self.said)} lines"
        top1 = None if self.best_top1 is None else round(self.best_top1, 4)
        return short_repr(self, run=self.run, best_top1=top1, best_epoch=self.best_epoch, epochs=epochs, model=model, said=said)

    def to_json(self) -> dict[str, Any]:
        """Return what `train --json` prints."""
        return {"run": self.run, "best_top1": self.best_top1, "best_epoch": self.best_epoch, **self.record}


@as_function(TrainOptions)
def train(options: TrainOptions) -> TrainReport:
    """Train a classifier from token shards alone, as the command `train` does, and return a TrainReport.

    >>> report = tokenshards.train("photos.tokens", "run", val="more.tokens", epochs=2, set={"model.depth": 1})
    >>> report.record["epoch"], report.settings["model"].depth, 0 <= report.best_top1 <= 1
    (2, 1, True)

    Raises the errors of `tokenshards.pipeline.errors`; StoppedError where a signal ended the training, after a checkpoint.
    """
    return run_training(options)


def run_training(options: TrainOptions) -> TrainReport:
    """Train as the options say. Raises what `train` raises."""
    learned = learn(options, "classify", classes=options.classes or (), train_part=options.train_part)
    return TrainReport(
        run=display_url(options.out),
        best_top1=learned.result.best_score,
        best_epoch=learned.result.best_epoch,
        record=learned.result.record,
        records=tuple(learned.reporter.records),
        settings=learned.settings,
        said=tuple(learned.reporter.said),
        rank=learned.rank,
    )
