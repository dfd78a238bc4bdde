"""A run directory: everything that a training resumes from, and everything that another machine needs to classify with the result.

RUN/
    run.json                sealed: configuration, spec, classes, channel statistics, dataset trained on
    tokenizer/              copy of the dataset's tokenizer, with the codebook
    tokenadapt/             copy of the fitted TokenAdapt, where `augment.ops` names one
    checkpoint.safetensors  the last state, exact
    best.safetensors        the best weights on the validation set
    metrics.jsonl .csv      one record per epoch
    curves.png              loss and accuracy over the epochs, drawn
    segments.png            of a run that learned masks: some images, their masks and what the model finds
    tensorboard/            the same records as events; only where TensorBoard is installed and RUN is on a local disk
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokenshards import __version__
from tokenshards.pipeline.canonical import seal, unseal
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, FormatVersionError, MissingObjectError, NotFoundError, shorten
from tokenshards.pipeline.shards.codebook import load_codebook
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import same_fields, short_repr
from tokenshards.stem_adaptors.augment import require_own_operations_allowed
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models.classifier import TokenClassifier
from tokenshards.stem_adaptors.models.embedding import Statistics, embedding_statistics
from tokenshards.stem_adaptors.models.own_code import require_own_code_allowed
from tokenshards.stem_adaptors.objectives import OBJECTIVES, Blueprint, Objective
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective
from tokenshards.stem_adaptors.segment_config import SegmentConfig
from tokenshards.stem_adaptors.training.checkpoints import load_model, read_checkpoint, read_weights

__all__ = [
    "BEST",
    "CHECKPOINT",
    "CURVES",
    "METRICS_CSV",
    "METRICS_JSONL",
    "RUN_JSON",
    "WEIGHTS",
    "Run",
    "default_fraction_seed",
    "load_run",
    "open_classifier",
    "open_classify_objective",
    "open_objective",
    "statistics_of",
]

RUN_JSON = "run.json"
CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
METRICS_JSONL = "metrics.jsonl"
METRICS_CSV = "metrics.csv"
CURVES = "curves.png"
WEIGHTS = {"best": BEST, "last": CHECKPOINT, "ema": CHECKPOINT}
"""The object that each choice of --weights reads."""
VERSION = 5
READABLE = (1, 2, 3, 4, 5)
"""Versions of run.json. Version 1, until 0.1.0, has no `draws` and no size of mix groups; `objective` came with version 3, `mask` with 4,
`segment` and `maps` with 5."""
TOKENIZER_OBJECTS = ("tokenizer/tokenizer.json", "tokenizer/codebook.safetensors", "tokenizer/weights.safetensors")

# Fields that may change between the parts of one training: where it runs, and how often it is saved.
FREE_FIELDS = {
    "loader": {"cache_dir", "cache_gb", "prefetch_batches"},
    "train": {"device", "compile", "checkpoint_seconds", "checkpoint_steps"},
}


@dataclass(frozen=True, kw_only=True, eq=False)  # its own __eq__: arrays have no truth value
class Run:
    """The content of run.json."""

    model: ModelConfig
    augment: AugmentConfig
    loader: LoaderConfig
    train: TrainConfig
    spec: TokenizerSpec
    classes: tuple[int | str, ...]
    statistics: Statistics | None
    """Mean and standard deviation of each embedding channel."""
    data: dict[str, Any]
    """URL, manifest and subset of the dataset trained on, and the source of the initial weights."""
    draws: int = DRAWS
    """Version of the rules for random draws, see `config.DRAWS`."""
    objective: str = "classify"
    """What is learned: a name of `objectives.OBJECTIVES`."""
    mask: MaskConfig | None = None
    """What a masked token modelling hides; None for other objectives."""
    segment: SegmentConfig | None = None
    """The head of a training on masks; None for other objectives."""
    maps: MaskFormat | None = None
    """Format of the masks that were learned; None for other objectives."""

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other) if isinstance(other, Run) else NotImplemented

    def __repr__(self) -> str:
        return short_repr(self, objective=self.objective, model=self.model.name, classes=self.classes, data=self.data.get("url"))

    def build(self, tables: Mapping[str, npt.NDArray[Any]]) -> Objective:
        """Return a new objective of this run, with its first weights. `tables`: the codebook of the run's tokenizer."""
        blueprint = Blueprint(
            spec=self.spec,
            tables=tables,
            statistics=self.statistics,
            classes=self.classes,
            model=self.model,
            augment=self.augment,
            mask=self.mask,
            segment=self.segment,
            maps=self.maps,
            label_smoothing=self.train.label_smoothing,
            seed=self.train.seed,
            draws=self.draws,
        )
        return OBJECTIVES[self.objective].build(blueprint)

    def to_json(self) -> dict[str, Any]:
        """Return the content of run.json."""
        parts = {name: asdict(getattr(self, name)) for name in ("model", "augment", "loader", "train")}
        statistics = None if self.statistics is None else [values.tolist() for values in self.statistics]
        optional: dict[str, Any] = {"mask": self.mask, "segment": self.segment, "maps": self.maps}
        return {
            "format": "tokenshards-run",
            "version": VERSION,
            "made_by": {"tokenshards": __version__, "torch": torch.__version__},
            **parts,
            "spec": self.spec.to_json(),
            "classes": list(self.classes),
            "statistics": statistics,
            "data": self.data,
            "draws": self.draws,
            "objective": self.objective,
            **{name: None if part is None else asdict(part) for name, part in optional.items()},
        }

    def save(self, store: Store, dataset: TokenDataset) -> None:
        """Write the copy of the tokenizer, then run.json: run.json never names an object that is missing."""
        for path in TOKENIZER_OBJECTS:
            if path in dataset.manifest.tokenizer_objects:
                store.write(path, dataset.store.read(path))
        store.write(RUN_JSON, seal(self.to_json()))

    def check_same(self, other: Run) -> None:
        """Raise ConfigError naming the difference, unless `other` continues this run."""
        # Of the same dataset, other classes are the cause of all other differences: in the data, and in defaults that go by their number.
        if self.classes != other.classes and self.data.get("manifest") == other.data.get("manifest"):
            raise ConfigError(
                f"--resume: the classes are {shorten(other.classes)}; this run was started with {shorten(self.classes)}. "
                "Give the same --classes, or start a new run in another directory"
            )
        if self.objective != other.objective:
            raise ConfigError(
                f"--resume: this run learns {self.objective!r}, and the command {other.objective!r}. Give the command that started the run "
                "(`pretrain` for 'mtm', `train` for 'classify', `train --objective segment` for 'segment'), or another --out"
            )
        for part in ("model", "augment", "loader", "train", "mask", "segment", "maps"):
            mine, theirs = getattr(self, part), getattr(other, part)
            for field in () if mine is None else fields(mine):
                if field.name in FREE_FIELDS.get(part, ()):
                    continue
                before, now = getattr(mine, field.name), getattr(theirs, field.name)
                longer = (part, field.name) == ("train", "epochs") and now > before  # the schedule then follows the new number
                if before != now and not longer:
                    raise ConfigError(
                        f"--resume: {part}.{field.name} is {shorten(now)}; this run was started with {shorten(before)}. "
                        "Give the same options, or start a new run in another directory"
                    )
        # The digests identify the data. A copy of the data, or of the file of initial weights, may lie elsewhere.
        data, other_data = ({**run.data, "url": None, "pretrained": run.data.get("pretrained") is not None} for run in (self, other))
        if self.spec.fingerprint != other.spec.fingerprint or self.classes != other.classes or data != other_data:
            raise ConfigError(
                f"--resume: the dataset is {shorten(other.data)}; this run was started with {shorten(self.data)}. Start a new run"
            )


def load_run(place: str | os.PathLike[str] | Store) -> Run:
    """Read run.json of a run, given by path or URL or as a Store.

    Raises MissingObjectError where there is no run, CorruptObjectError or FormatVersionError where it cannot be read.
    """
    store = _store_of(place)
    try:
        value = unseal(store.read(RUN_JSON), RUN_JSON)
    except MissingObjectError:
        raise NotFoundError(
            RUN_JSON, f"no run here; give the directory that `train --out` or `pretrain --out` made ({store.url})"
        ) from None
    version = value.get("version")
    if version not in READABLE:
        raise FormatVersionError(f"{RUN_JSON}: version {version!r}; this version reads {VERSION} and older. Upgrade tokenshards")
    try:
        statistics = value["statistics"]
        before: dict[str, Any] = {"mix_group": 0} if version == 1 else {}  # version 1 mixed all samples that a rank had of a batch
        return Run(
            model=ModelConfig(**value["model"]),
            augment=AugmentConfig(**before, **value["augment"]),
            loader=LoaderConfig(**value["loader"]),
            train=TrainConfig(**value["train"]),
            spec=TokenizerSpec.from_json(value["spec"], RUN_JSON),
            classes=tuple(value["classes"]),
            statistics=None if statistics is None else _as_statistics(statistics),
            data=value["data"],
            draws=1 if version == 1 else value["draws"],
            objective=_known_objective(value["objective"] if version > 2 else "classify"),
            mask=MaskConfig(**value["mask"]) if version > 3 and value["mask"] is not None else None,
            segment=SegmentConfig(**value["segment"]) if version > 4 and value["segment"] is not None else None,
            maps=MaskFormat(**value["maps"]) if version > 4 and value["maps"] is not None else None,
        )
    except (KeyError, TypeError) as error:
        raise CorruptObjectError(RUN_JSON, f"not a run ({type(error).__name__}: {error})") from None


def default_fraction_seed(store: Store, seed: int) -> int:
    """Return the default seed for the share of `train --fraction`: 0; in a run of the first version, the seed of that run."""
    return seed if store.info(RUN_JSON) is not None and load_run(store).draws == 1 else 0


def open_objective(store: Store, weights: str = "best", device: torch.device | str = "cpu") -> tuple[Objective, Run]:
    """Build the objective of a run with its `best` or `last` weights, or the last averaged ones (`ema`), ready to measure.

    Raises the errors of `load_run` and of the weights; ConfigError for another choice, and where the run's model is code of a user that
    $TOKENSHARDS_ALLOW_PYTHON does not name; MissingObjectError before the first epoch has ended.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"--weights is {weights!r}; expected one of {', '.join(WEIGHTS)}")
    run = load_run(store)
    require_own_code_allowed(run.model)
    require_own_operations_allowed(run.augment)
    tables: Mapping[str, npt.NDArray[Any]] = {}
    if run.spec.codebook is not None:
        tables = load_codebook(store.read(TOKENIZER_OBJECTS[1]), run.spec.codebook.sha256, TOKENIZER_OBJECTS[1])
    objective = run.build(tables)
    path = WEIGHTS[weights]
    try:
        tensors = read_checkpoint(store, path).average if weights == "ema" else read_weights(store, path)[0]
    except MissingObjectError:
        raise MissingObjectError(
            path, f"the run has not written these weights yet; continue it with train --resume ({store.url})"
        ) from None
    if not tensors:
        raise ConfigError(f"--weights is ema; {store.url} keeps no averaged weights. Train with --ema, such as 0.999, or give best or last")
    load_model(objective.model, tensors, path)
    objective.to(device).eval()
    return objective, run


def open_classify_objective(store: Store, weights: str = "best", device: torch.device | str = "cpu") -> tuple[ClassifyObjective, Run]:
    """Return what `open_objective` returns, for a run of a classifier. Raises ConfigError for a run that learned something else."""
    objective, run = open_objective(store, weights, device)
    if not isinstance(objective, ClassifyObjective):
        raise ConfigError(f"{store.url}: the run learned {run.objective!r}; expected a classifier, which `train` makes")
    return objective, run


def open_classifier(
    run: str | os.PathLike[str] | Store, weights: str = "best", device: torch.device | str = "cpu"
) -> tuple[TokenClassifier, Run]:
    """Return the classifier of a run, which is given by path or URL or as a Store, and the Run.

    Raises the errors of `open_classify_objective`.
    """
    objective, found = open_classify_objective(_store_of(run), weights, device)
    return objective.model, found


def _store_of(place: str | os.PathLike[str] | Store) -> Store:
    return place if isinstance(place, Store) else Store(os.fspath(place))


def _known_objective(name: str) -> str:
    if name not in OBJECTIVES:
        raise FormatVersionError(f"{RUN_JSON}: the run learned {name!r}; this version knows {', '.join(OBJECTIVES)}. Upgrade tokenshards")
    return name


def statistics_of(dataset: TokenDataset) -> Statistics | None:
    """Return the channel statistics of a dataset's embeddings as float32; None where the dataset has no codebook."""
    found = embedding_statistics(dataset)
    return None if found is None else _as_statistics(found)


def _as_statistics(values: Any) -> Statistics:
    mean, std = values
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)
