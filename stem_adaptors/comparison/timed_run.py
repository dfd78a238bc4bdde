"""One training of a comparison: a small classifier on one side's tokens, or some of them, from one seed, until its seconds are spent."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment import allowed_augmentations
from tokenshards.stem_adaptors.comparison.paired import packed
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.data.class_names import class_map
from tokenshards.stem_adaptors.data.loader import TokenLoader, TrainingData
from tokenshards.stem_adaptors.data.selection import Selection, sample_count
from tokenshards.stem_adaptors.data.subsets import Subset, subset_of
from tokenshards.stem_adaptors.models.classifier import TokenClassifier
from tokenshards.stem_adaptors.training.build import build
from tokenshards.stem_adaptors.training.timed_trainer import TimedTrainer, clock_of
from tokenshards.stem_adaptors.training.training_request import TrainRequest

__all__ = ["RECIPE", "Run", "made_model", "made_trainer", "right_of", "train_run"]

T = TypeVar("T", bound=TimedTrainer)

MODEL = ModelConfig(name="vit_micro", width=96, depth=4, heads=3)
TOKENS_A_SIDE = 8
"""Tokens of the transformer along each axis of a grid, on every side of the comparison."""
AUGMENT = AugmentConfig(
    synonym_prob=0.0,
    swap_prob=0.0,
    flip_prob=0.5,
    crop_share=1.0,
    crop_scale_min=0.35,
    noise_prob=0.25,
    noise_std=0.5,
    noise_channel_std=0.5,
    cutmix_prob=0.5,
)
"""The recipe `laptop_64px`, without operations on single ids, which pixels have not."""
TRAIN = TrainConfig(lr=2e-3)
BATCH, MEASURED_TOGETHER = 64, 100
WARMUP = 0.1
"""Share of the seconds in which the rate rises."""
STEPS_BETWEEN_ENDS = 100
"""Of a subset, whose epochs may be of one step."""
RECIPE: list[Any] = [*(asdict(part) for part in (MODEL, AUGMENT, TRAIN)), BATCH, WARMUP, TOKENS_A_SIDE]
"""Everything that all trainings share, for the digests of their results."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to train, and where its result is kept. JSON can hold all fields."""

    side: str
    """Folder of the side in the comparison's store."""
    data: str
    """Digest of the data of that side: results of other data are not taken."""
    seed: int
    seconds: float
    device: str = "cpu"
    train_url: str = ""
    """Absolute URL of the dataset to learn from; empty for `side`/train in the comparison's store."""
    val_url: str = ""
    """Absolute URL of the dataset to measure on; empty for `side`/val."""
    subset: Subset | None = None
    """The images to learn from, drawn by the seed; None for all."""

    @property
    def key(self) -> str:
        """A digest of everything that the result depends on: `data` stands for the places of both datasets."""
        own = {name: value for name, value in asdict(self).items() if name not in ("train_url", "val_url")}
        if self.subset is None:
            del own["subset"]  # results of before there were subsets keep their names
        settings = {**own, "recipe": RECIPE}
        return sha256_hex(json.dumps(settings, sort_keys=True).encode())[:16]

    @property
    def path(self) -> str:
        """Where the result lies in the comparison's store."""
        return f"runs/{self.key}.json"


def train_run(out_url: str, storage_options: dict[str, Any], run: Run) -> dict[str, Any]:
    """Train, measure, keep the result and return it: `right` as text of `packed`, `images`, `top1`, and figures of the training.

    The training itself is not resumed: it takes minutes.
    """
    torch.set_num_threads(1)
    store = Store(out_url, storage_options=storage_options)
    own = f"{store.location}/{run.side}"
    train = open_dataset(run.train_url or f"{own}/train", storage_options=storage_options)
    val = open_dataset(run.val_url or f"{own}/val", storage_options=storage_options)
    chosen = train if run.subset is None else subset_of(train, run.subset, run.seed)
    device = torch.device(run.device)
    begun = clock_of(device)
    with tempfile.TemporaryDirectory(prefix="tokenshards-compare-") as folder:
        trainer = made_trainer(TimedTrainer, chosen, Store(folder), seed=run.seed, device=device, begun=begun, seconds=run.seconds)
        trainer.train()
    known = class_map(val.classes, train.classes, val.store.url, missing_is_error=False)
    right_N = right_of(trainer.model, known, val, device)
    found = {
        **trainer.figures(),
        "run": run.key,
        "side": run.side,
        "seed": run.seed,
        "right": packed(right_N),
        "images": len(right_N),
        "top1": round(float(right_N.mean()), 5),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "process": os.getpid(),
    }
    store.write(run.path, json.dumps(found, sort_keys=True).encode())
    return found


def made_trainer(
    kind: Callable[..., T],
    data: TrainingData,
    out: Store,
    *,
    seed: int,
    device: torch.device,
    begun: float,
    seconds: float,
) -> T:
    """Return the trainer of the recipe for these data: `kind` makes it as TimedTrainer is made. `out`: its run directory."""
    request = TrainRequest(
        data=data,
        val=None,
        out=out,
        model=_model(data.spec),
        augment=allowed_augmentations(data.spec, AUGMENT),
        loader=LoaderConfig(batch_size=min(BATCH, sample_count(data)), seed=seed),
        train=replace(TRAIN, seed=seed, device=str(device), checkpoint_seconds=1e6),
    )
    ends = 1 if isinstance(data, TokenDataset) else STEPS_BETWEEN_ENDS
    return kind(request, device, begun=begun, seconds=seconds, warmup=WARMUP, steps_between_ends=ends)


def made_model(data: TokenDataset | Selection) -> TokenClassifier:
    """Return a new model of the recipe, as a trainer of such data has it."""
    return build(_model(data.spec), data, augment=allowed_augmentations(data.spec, AUGMENT))[0]


def _model(spec: TokenizerSpec) -> ModelConfig:
    """Return the model with the step of the stem that leaves about as many tokens on every side."""
    grid = spec.layout.grid
    if not grid:
        return MODEL
    return replace(MODEL, stem="conv", stem_patch=max(1, round(max(grid[-2:]) / TOKENS_A_SIDE)))


@torch.inference_mode()
def right_of(model: nn.Module, known: Tensor, val: TokenDataset, device: torch.device) -> npt.NDArray[np.bool_]:
    """Return which labelled images, in stored order, are classified correctly. `known` is the result of `class_map` for `val`."""
    model, known = model.eval(), known.to(device)
    config = LoaderConfig(batch_size=min(MEASURED_TOGETHER, sample_count(val)), order="sequential", end="pad")
    right = []
    for batch in TokenLoader(val, config, device=device):
        logits_BC = model(batch.ids_BLQ, mask_BL=batch.mask_BL, shapes_BD=batch.shapes_BD)
        kept_B = (batch.weights_B > 0) & (batch.labels_B >= 0)
        right.append((logits_BC.argmax(dim=1) == known[batch.labels_B])[kept_B].cpu().numpy())
    return np.concatenate(right)
