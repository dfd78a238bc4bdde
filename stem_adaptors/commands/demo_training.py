"""The second half of `demo`: train a classifier on the digits' token shards and measure it on held-out digits."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from tokenshards.pipeline.commands.demo_folder import clear_demo_folder
from tokenshards.pipeline.shards.dataset import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.defaults import default_configs
from tokenshards.stem_adaptors.training.trainer import Trainer
from tokenshards.stem_adaptors.training.training_request import Reporter, TrainRequest

__all__ = ["train_demo"]

EPOCHS = 12


def train_demo(folder: str, reporter: Reporter) -> None:
    """Train on `digits_train` below `folder`, measure on `digits_val`, print the result, and keep the run in `run`.

    Raises ConfigError where the first half of the demo did not make `folder`.
    """
    started = time.monotonic()
    root = Path(folder)
    clear_demo_folder(root, "run")
    data, val = open_dataset(str(root / "digits_train")), open_dataset(str(root / "digits_val"))
    configs = default_configs(data)
    configs["train"] = replace(configs["train"], epochs=EPOCHS)
    configs["loader"] = replace(configs["loader"], cache_dir=str(root / "cache"))
    print("\na classifier learns from the shards alone, with the default settings:")
    print(f"tokenshards train {root}/digits_train --val {root}/digits_val --out {root}/run --epochs {EPOCHS}", flush=True)
    request = TrainRequest(data=data, val=val, out=Store(str(root / "run")), **configs)
    result = Trainer(request, Ranks(), torch.device("cpu"), reporter).fit()
    print(f"\ntop-1 on {len(val)} held-out digits: {result.best_score or 0:.1%}, after {time.monotonic() - started:.0f} s of training")
    print(f"   look at {root}/photos.png and at {root}/run/curves.png, then try:")
    print(f"   tokenshards evaluate {root}/run --images {root}/images/digits/val --confusion {root}/confusion.png")
    print(f"   tokenshards predict {root}/run {root}/images/digits/val/7")
    print("   tokenshards tokenize YOUR_IMAGES OUT")
