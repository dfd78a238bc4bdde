"""A training as plain data: everything that a process needs to take part in the training, in a terminal or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.data.class_choice import class_part
from tokenshards.stem_adaptors.data.loader import TrainingData
from tokenshards.stem_adaptors.data.selection import Selection
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.segment_config import SegmentConfig
from tokenshards.stem_adaptors.training.adapt_copy import absolute_files
from tokenshards.stem_adaptors.training.defaults import training_data
from tokenshards.stem_adaptors.training.trainer import Trainer
from tokenshards.stem_adaptors.training.training_request import Reporter, TrainRequest, TrainResult

__all__ = ["TrainingJob"]

_CONFIGS = {"model": ModelConfig, "augment": AugmentConfig, "loader": LoaderConfig, "train": TrainConfig}


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Where the data are, where the run is kept, and every setting. JSON can hold all fields."""

    data_url: str
    val_url: str | None
    out_url: str
    model: ModelConfig
    augment: AugmentConfig
    loader: LoaderConfig
    train: TrainConfig
    fraction: float = 1.0
    fraction_seed: int = 0
    classes: tuple[str, ...] = ()
    """Names of the classes to learn and to measure; empty for all."""
    mix: tuple[str, ...] = ()
    """Further datasets as URL=WEIGHT."""
    pretrained: str | None = None
    objective: str = "classify"
    """What to learn: a name of `objectives.OBJECTIVES`."""
    mask: MaskConfig | None = None
    """What a masked token modelling hides; None for other objectives."""
    segment: SegmentConfig | None = None
    """The head of a training on masks; None for other objectives."""
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
    """May hold credentials, so it is never shown."""

    def to_json(self) -> dict[str, Any]:
        """Return the job as values that JSON can hold."""
        return {**asdict(self), "classes": list(self.classes), "mix": list(self.mix)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainingJob:
        """Return the job from the value that `to_json` returned."""
        configs = {name: kind(**value[name]) for name, kind in _CONFIGS.items()}
        optional = {"mask": MaskConfig, "segment": SegmentConfig}
        own = {name: None if value[name] is None else kind(**value[name]) for name, kind in optional.items()}
        return cls(**{**value, **configs, **own, "classes": tuple(value["classes"]), "mix": tuple(value["mix"])})

    def made_absolute(self) -> TrainingJob:
        """Return the job with absolute local paths, so that a process with another working directory finds them."""
        cache_dir = self.loader.cache_dir
        return replace(
            self,
            data_url=_absolute(self.data_url),
            val_url=None if self.val_url is None else _absolute(self.val_url),
            out_url=_absolute(self.out_url),
            mix=tuple(f"{_absolute(place)}={weight}" for place, _, weight in (text.rpartition("=") for text in self.mix)),
            pretrained=None if self.pretrained is None else _absolute(self.pretrained),
            augment=absolute_files(self.augment, _absolute),
            loader=replace(self.loader, cache_dir=None if cache_dir is None else os.path.abspath(os.path.expanduser(cache_dir))),
        )

    def open_data(self) -> TrainingData:
        """Open the training set. Raises the errors of opening a dataset."""
        return training_data(
            self.data_url,
            fraction=self.fraction,
            seed=self.fraction_seed,
            classes=self.classes,
            mix_with=self.mix,
            storage_options=self.storage_options,
        )

    def open_val(self) -> TokenDataset | Selection | None:
        """Open the validation set, of the same classes. Raises the errors of opening a dataset, ConfigError where it has none of them."""
        if self.val_url is None:
            return None
        return class_part(open_dataset(self.val_url, storage_options=self.storage_options), self.classes)

    def open_out(self) -> Store:
        """Open the run directory."""
        return Store(self.out_url, storage_options=self.storage_options)

    def run(
        self,
        data: TrainingData,
        ranks: Ranks,
        place: torch.device,
        reporter: Reporter,
        *,
        resume: bool,
        started: Callable[[Trainer], None] | None = None,
    ) -> TrainResult:
        """Train on this rank to the end. `started` receives the trainer before its first step.

        Raises ConfigError where the device has too little memory, and the errors of Trainer.
        """
        request = TrainRequest(
            data=data,
            val=self.open_val(),
            out=self.open_out(),
            model=self.model,
            augment=self.augment,
            loader=self.loader,
            train=self.train,
            objective=self.objective,
            mask=self.mask,
            segment=self.segment,
            pretrained=self.pretrained,
            resume=resume,
            storage_options=self.storage_options,
        )
        try:
            trainer = Trainer(request, ranks, place, reporter)
            if started is not None:
                started(trainer)
            return trainer.fit()
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise ConfigError(
                    f"{place} is out of memory at --batch-size {self.loader.batch_size}; give a smaller batch, "
                    "or --set train.accumulate=2, which computes the same batch in parts"
                ) from None
            raise


def _absolute(url: str) -> str:
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))
