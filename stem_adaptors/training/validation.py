"""The validation set of a training, and the scores of the model and of its average on that set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.joined import JoinedDataset
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader, TrainingData
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.selection import Selection
from tokenshards.stem_adaptors.objectives.base import Objective
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.ema import AveragedWeights
from tokenshards.stem_adaptors.training.evaluate import evaluate
from tokenshards.stem_adaptors.training.run_directory import Run
from tokenshards.stem_adaptors.training.training_request import TrainRequest

__all__ = ["Candidate", "Validation", "seen_in_training"]

Candidate = tuple[float, dict[str, Tensor], str]
"""A score, the weights that reached it, and the name of these weights."""


class Validation:
    """Measures after each epoch. Without a validation set the last weights count as the best."""

    def __init__(self, request: TrainRequest, run: Run, objective: Objective, ranks: Ranks, device: torch.device) -> None:
        """Open the set. Raises ConfigError where another tokenizer made it, where it is part of the training mix, or where the
        objective cannot be measured on it.
        """
        self._objective, self._ranks = objective, ranks
        self.loader: TokenLoader | None = None
        self.note: str | None = None
        """What the user should know of the set."""
        val, loader = request.val, request.loader
        if val is None:
            return
        dataset = val.dataset if isinstance(val, Selection) else val
        if val.spec.fingerprint != run.spec.fingerprint:
            raise ConfigError(
                f"{dataset.store.url} was made by the tokenizer {val.spec.fingerprint[:12]}…; the training set by "
                f"{run.spec.fingerprint[:12]}…. Tokenize the validation set with --tokenizer TRAINING_SET"
            )
        self.note = seen_in_training(dataset, request.data)
        # The labels of a part index the table of the whole dataset. A part has been chosen for its classes.
        self._align = objective.align(dataset, strict=dataset is val)
        config = LoaderConfig(
            batch_size=loader.batch_size,
            order="sequential",
            end="pad",
            cache_dir=loader.cache_dir,
            cache_gb=loader.cache_gb,
            prefetch_batches=loader.prefetch_batches,
        )
        maps = objective.reads_label_maps
        self.loader = TokenLoader(val, config, rank=ranks.rank, world_size=ranks.world_size, device=device, label_maps=maps)

    def measure(self, average: AveragedWeights | None, precision: torch.dtype, step: int) -> tuple[dict[str, Any], list[Candidate]]:
        """Return the fields for the record of an epoch, and the weights that may be the best so far."""
        objective, model = self._objective, self._objective.model
        if self.loader is None:
            # Without a measurement the latest weights win.
            newest = float(step if objective.higher_is_better else -step)
            return {}, [(newest, model.state_dict() if average is None else average.tensors, "last")]
        found = self._figures(self.loader, precision)
        record = {f"val_{name}": found[name] for name in objective.validation_figures}
        candidates: list[Candidate] = [(found[objective.score], model.state_dict(), "last")]
        if average is not None:
            with average.applied_to(model):
                averaged = self._figures(self.loader, precision)
            record |= {f"ema_val_{name}": averaged[name] for name in objective.validation_figures if name != "images"}
            candidates.append((averaged[objective.score], average.tensors, "ema"))
        return record, candidates

    def _figures(self, loader: TokenLoader, precision: torch.dtype) -> dict[str, float]:
        objective = self._objective
        return evaluate(objective, loader.epoch(0), self._align, precision, objective.measure()).record(self._ranks)


def seen_in_training(val: TokenDataset, data: TrainingData) -> str | None:
    """Return a note where the training set is the validation set; raise ConfigError where a mix contains it. Manifests tell."""
    measured = _digests(val)
    parts = data.parts if isinstance(data, Mix) else (data,)
    for number, part in enumerate(parts):
        dataset = part.dataset if isinstance(part, Selection) else part
        if not measured & _digests(dataset):
            continue
        if number:
            raise ConfigError(
                f"{val.store.url} is in the training mix and is the validation set too, so the accuracy would be that of images it learned "
                "from. Leave it out of --mix, or give another --val"
            )
        return f"note: the validation set {val.store.url} is the training set, so the accuracy is that of images that were learned from"
    return None


def _digests(dataset: TokenDataset) -> set[str]:
    return {part.digest for part in (dataset.parts if isinstance(dataset, JoinedDataset) else (dataset,))}
