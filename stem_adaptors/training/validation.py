"""The validation set of a training, and the scores of the model and of its average on that set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.models.classifier import TokenClassifier
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.ema import AveragedWeights
from tokenshards.stem_adaptors.training.evaluate import class_map, evaluate
from tokenshards.stem_adaptors.training.metrics import Accuracy
from tokenshards.stem_adaptors.training.run_directory import Run
from tokenshards.stem_adaptors.training.training_request import TrainRequest

__all__ = ["Candidate", "Validation"]

Candidate = tuple[float, dict[str, Tensor], str]
"""A score, the weights that reached it, and the name of these weights."""


class Validation:
    """Measures after each epoch. Without a validation set the last weights count as the best."""

    def __init__(self, request: TrainRequest, run: Run, ranks: Ranks, device: torch.device) -> None:
        """Open the set. Raises ConfigError where another tokenizer made it, or where it has a class that the run does not know."""
        self._classes, self._ranks, self._device = len(run.classes), ranks, device
        self.loader: TokenLoader | None = None
        val, loader = request.val, request.loader
        if val is None:
            return
        if val.spec.fingerprint != run.spec.fingerprint:
            raise ConfigError(
                f"{val.store.url} was made by the tokenizer {val.spec.fingerprint[:12]}…; the training set by "
                f"{run.spec.fingerprint[:12]}…. Tokenize it with --tokenizer and the training set"
            )
        self.mapping = class_map(val.classes, run.classes, val.store.url, missing_is_error=True).to(device)
        config = LoaderConfig(
            batch_size=loader.batch_size,
            order="sequential",
            end="pad",
            cache_dir=loader.cache_dir,
            cache_gb=loader.cache_gb,
            prefetch_batches=loader.prefetch_batches,
        )
        self.loader = TokenLoader(val, config, rank=ranks.rank, world_size=ranks.world_size, device=device)

    def measure(
        self, model: TokenClassifier, average: AveragedWeights | None, precision: torch.dtype, step: int
    ) -> tuple[dict[str, Any], list[Candidate]]:
        """Return the fields for the record of an epoch, and the weights that may be the best so far."""
        if self.loader is None:
            return {}, [(float(step), model.state_dict() if average is None else average.tensors, "last")]
        found = self._accuracy(self.loader, model, precision)
        record = {"val_loss": found.loss, "val_top1": found.top1, "val_top5": found.top5, "val_images": found.images}
        candidates: list[Candidate] = [(found.top1, model.state_dict(), "last")]
        if average is not None:
            with average.applied_to(model):
                averaged = self._accuracy(self.loader, model, precision)
            record |= {"ema_val_loss": averaged.loss, "ema_val_top1": averaged.top1, "ema_val_top5": averaged.top5}
            candidates.append((averaged.top1, average.tensors, "ema"))
        return record, candidates

    def _accuracy(self, loader: TokenLoader, model: TokenClassifier, precision: torch.dtype) -> Accuracy:
        return evaluate(model, loader.epoch(0), self.mapping, self._classes, self._ranks, self._device, precision)
