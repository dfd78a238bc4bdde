"""`tokenshards.train`: a classifier is trained, and reported. The command `train` calls the same code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenshards.pipeline.commands.python_calls import as_function
from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.stem_adaptors.commands.learning import TrainingReport, learn
from tokenshards.stem_adaptors.commands.segment_views import draw_segments
from tokenshards.stem_adaptors.commands.train_options import TrainOptions

__all__ = ["TrainReport", "run_training", "train"]

OBJECTIVES = ("classify", "segment")


@dataclass(frozen=True, kw_only=True)
class TrainReport(TrainingReport):
    """The result of a training, and what was decided on the way.

    >>> report = tokenshards.train("photos.tokens", "probe", pretrained="run", train_part="head", epochs=1, set={"model.depth": 1})
    >>> report.said[0]
    'no --val given: nothing is measured, and the last weights count as the best'
    >>> report.settings["train"].train_part, len(report.records)
    ('head', 1)
    """

    best_top1: float | None
    """Accuracy on the validation set, 0 to 1; None without one, and of a training on masks."""
    best_miou: float | None = None
    """Mean intersection over union on the validation set, 0 to 1, of a training on masks; else None."""

    def __repr__(self) -> str:
        return self.shown(**self._best())

    def to_json(self) -> dict[str, Any]:
        """Return what `train --json` prints."""
        return {"run": self.run, **self._best(), "best_epoch": self.best_epoch, **self.record}

    def _best(self) -> dict[str, float | None]:
        return {"best_top1": self.best_top1} if "segment" not in self.settings else {"best_miou": self.best_miou}


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
    if options.objective not in OBJECTIVES:
        raise ConfigError(f"--objective is {shorten(options.objective)}; expected {' or '.join(OBJECTIVES)} (`pretrain` learns mtm)")
    learned = learn(options, options.objective, classes=options.classes or (), train_part=options.train_part)
    score, of_pixels = learned.result.best_score, options.objective == "segment"
    if of_pixels and learned.rank == 0:
        draw_segments(options, learned.reporter)
    return TrainReport(best_top1=None if of_pixels else score, best_miou=score if of_pixels else None, **learned.fields(options.out))
