"""A small training on real tokens, in this process: shared by the tests of training, runs and reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import tokenshards.stem_adaptors.training.trainer as train_module
from tests.datasets import convert, write_images
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.data.loader import TrainingData
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.trainer import Trainer, TrainRequest

IMAGES, VAL_IMAGES = 70, 20
MODEL = ModelConfig(name="vit_nano", width=16, depth=2, heads=2, drop_path=0.1)
AUGMENT = AugmentConfig(flip_prob=0.5, crop_share=1.0, coloradapt_prob=0.3, mixup_alpha=0.4)
FIT = FitConfig(size=32, codes=32, iterations=4, patch=8)


def tokenize_pair(folder: Path) -> tuple[Path, Path]:
    """Make a training and a validation set of three classes, several shards each; return their places."""
    write_images(folder / "train_images", IMAGES, seed=1)
    write_images(folder / "val_images", VAL_IMAGES, seed=2)
    convert(folder / "train_images", folder / "train", fit=FIT, shard_rows=16)
    convert(folder / "val_images", folder / "val", tokenizer=str(folder / "train" / "tokenizer"), shard_rows=16)
    return folder / "train", folder / "val"


class KeptReporter:
    """Keeps what a training says."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.losses: list[float] = []
        self.records: list[dict[str, Any]] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def step(self, epoch: int, step: int, steps: int, images_per_second: float, loss: float) -> None:
        self.losses.append(loss)

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)


def request_for(data: TrainingData, out: Path | str, cache: Path, *, loader: dict[str, Any] | None = None, **changes: Any) -> TrainRequest:
    """Return a request of 3 epochs of 4 steps, every augmentation on, 2 threads of prefetching; fields of TrainConfig by name."""
    fields = {name: changes.pop(name) for name in list(changes) if name in TrainConfig.__dataclass_fields__}
    train = {"epochs": 3, "warmup_epochs": 0.5, "ema_decay": 0.9, "checkpoint_steps": 1000, "device": "cpu", "seed": 3, **fields}
    reading = LoaderConfig(batch_size=16, seed=3, cache_dir=str(cache), prefetch_batches=2)
    parts: dict[str, Any] = {"val": None, "model": MODEL, "augment": AUGMENT, **changes}
    return TrainRequest(data=data, out=Store(str(out)), loader=replace(reading, **(loader or {})), train=TrainConfig(**train), **parts)


def fit(request: TrainRequest) -> KeptReporter:
    """Train in this process and return what was said."""
    reporter = KeptReporter()
    Trainer(request, Ranks(), torch.device("cpu"), reporter).fit()
    return reporter


class Stopped(Exception):
    """A training ended where a test wanted it to."""


@contextmanager
def death_after(step: int) -> Iterator[None]:
    """Let the training fall over after so many steps, as a kill would: nothing is saved on the way out."""
    real, passed = train_module.crash_point, 0

    def die(name: str, key: str = "") -> None:
        nonlocal passed
        passed += 1
        if passed == step:
            raise Stopped
        real(name, key)

    train_module.crash_point = die
    try:
        yield
    finally:
        train_module.crash_point = real
