"""Small chains on real images, and a clock that counts optimiser steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tokenshards.stem_adaptors.continual import seen_classes
from tokenshards.stem_adaptors.continual.chain import Chain
from tokenshards.stem_adaptors.training import timed_trainer

CLASSES = ("class_0", "class_1", "class_2", "class_3", "class_4")


def write_both(folder: Path) -> None:
    """Tokens of 60 images of five classes to learn from, and of 20 to measure on."""
    write_images(folder / "train", 60, classes=5, seed=1)
    write_images(folder / "val", 20, classes=5, seed=2)
    convert(folder / "train", folder / "train.tokens", shard_rows=17, runner=InlineRunner())
    convert(folder / "val", folder / "val.tokens", tokenizer=str(folder / "train.tokens"), runner=InlineRunner())


def chain_of(folder: Path, **changes: Any) -> Chain:
    places = {"train_url": f"{folder}/train.tokens", "val_url": f"{folder}/val.tokens", "memory_url": f"{folder}/train.tokens"}
    settings = {"data": "d", "classes": CLASSES, "steps": 3, "until": 3, "images": 7, "choice": "herding", "seed": 0, "step_seconds": 6.0}
    return Chain(**{**places, **settings, **changes})


def count_steps(patch: pytest.MonkeyPatch) -> None:
    """Let a second pass at each look at the clock, which a training makes once a step: it makes as many steps on any machine."""
    looks = iter(range(10**9))
    for module in (timed_trainer, seen_classes):
        patch.setattr(module, "clock_of", lambda device: float(next(looks)))
