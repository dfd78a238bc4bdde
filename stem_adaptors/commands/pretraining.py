"""`tokenshards.pretrain`: an encoder learns from tokens without labels. The command `pretrain` calls the same code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenshards.pipeline.commands.python_calls import as_function
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.storage.store import display_url
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.commands.learning import learn
from tokenshards.stem_adaptors.commands.masked_views import draw_reconstructions
from tokenshards.stem_adaptors.commands.pretrain_options import PretrainOptions

__all__ = ["PretrainReport", "pretrain", "run_pretraining"]

OBJECTIVES = ("mtm",)
"""The objectives that need no labels."""


@dataclass(frozen=True, kw_only=True)
class PretrainReport:
    """The result of a pre-training, and what was decided on the way.

    >>> report = tokenshards.pretrain("photos.tokens", "pretrained", val="more.tokens", epochs=2, set={"model.depth": 1})
    >>> report.settings["mask"].drop_share, len(report.records), report.best_epoch in (1, 2)
    (0.75, 2, True)
    """

    run: str
    """URL of the run directory."""
    best_masked_accuracy: float | None
    """Share of hidden ids that are predicted right on the validation set, 0 to 1; None without one."""
    best_epoch: int | None
    """Counted from 1, as in every record."""
    record: dict[str, Any]
    """Measurements of the last epoch."""
    records: tuple[dict[str, Any], ...]
    """Measurements of each epoch that this call trained."""
    settings: Mapping[str, Any]
    """The configs `model`, `augment`, `loader`, `train` and `mask` that were used."""
    said: tuple[str, ...]
    """What a terminal would have shown, without the lines of epochs."""
    rank: int = 0

    def __repr__(self) -> str:
        model, epochs, said = self.settings["model"].name, self.record.get("epoch"), f"{len(self.said)} lines"
        best = None if self.best_masked_accuracy is None else round(self.best_masked_accuracy, 4)
        return short_repr(self, run=self.run, best_masked_accuracy=best, best_epoch=self.best_epoch, epochs=epochs, model=model, said=said)

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
    return PretrainReport(
        run=display_url(options.out),
        best_masked_accuracy=learned.result.best_score,
        best_epoch=learned.result.best_epoch,
        record=learned.result.record,
        records=tuple(learned.reporter.records),
        settings=learned.settings,
        said=tuple(learned.reporter.said),
        rank=learned.rank,
    )
