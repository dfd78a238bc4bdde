"""`tokenshards.pretrain`: an encoder learns from tokens without labels. The command `pretrain` calls the same code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenshards.pipeline.commands.python_calls import as_function
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.commands.learning import TrainingReport, learn
from tokenshards.stem_adaptors.commands.masked_views import draw_reconstructions
from tokenshards.stem_adaptors.commands.pretrain_options import PretrainOptions

__all__ = ["PretrainReport", "pretrain", "run_pretraining"]

OBJECTIVES = ("mtm",)
"""The objectives that need no labels."""


@dataclass(frozen=True, kw_only=True)
class PretrainReport(TrainingReport):
    """The result of a pre-training, and what was decided on the way.

    >>> report = tokenshards.pretrain("photos.tokens", "pretrained", val="more.tokens", epochs=2, set={"model.depth": 1})
    >>> report.settings["mask"].drop_share, len(report.records), report.best_epoch in (1, 2)
    (0.75, 2, True)
    """

    best_masked_accuracy: float | None
    """Share of hidden tokens (ids, or whole patches) that are predicted right on the validation set, 0 to 1; None without one."""

    def __repr__(self) -> str:
        return self.shown(best_masked_accuracy=self.best_masked_accuracy)

    def to_json(self) -> dict[str, Any]:
        """Return what `pretrain --json` prints."""
        return {"run": self.run, "best_masked_accuracy": self.best_masked_accuracy, "best_epoch": self.best_epoch, **self.record}


@as_function(PretrainOptions)
def pretrain(options: PretrainOptions) -> PretrainReport:
    """Learn an encoder from tokens without labels, as the command `pretrain` does, and return a PretrainReport.

    >>> report = tokenshards.pretrain("photos.tokens", "encoder", epochs=1, set={"model.depth": 1})
    >>> tuned = tokenshards.train("photos.tokens", "tuned", pretrained="encoder", epochs=1)
    >>> tuned.settings["model"].depth
    1

    Raises the errors of `tokenshards.pipeline.errors`; StoppedError where a signal ended the training, after a checkpoint.
    """
    return run_pretraining(options)


def run_pretraining(options: PretrainOptions) -> PretrainReport:
    """Train as the options say. Raises what `pretrain` raises."""
    if options.objective not in OBJECTIVES:
        raise ConfigError(f"--objective is {options.objective!r}; expected one of {', '.join(OBJECTIVES)}")
    learned = learn(options, options.objective)
    if learned.rank == 0:
        draw_reconstructions(options, learned.reporter)
    return PretrainReport(best_masked_accuracy=learned.result.best_score, **learned.fields(options.out))
