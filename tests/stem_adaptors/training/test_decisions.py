"""What a training says about itself before its first step, and that it can learn at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tests.stem_adaptors.training.small_runs import KeptReporter, fit, request_for, tokenize_pair
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.config import AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.data.selection import select
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.decisions import augmentation_words
from tokenshards.stem_adaptors.training.defaults import default_configs
from tokenshards.stem_adaptors.training.trainer import Trainer
from tokenshards.stem_adaptors.training.training_request import TrainRequest


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenDataset, TokenDataset]:
    train, val = tokenize_pair(tmp_path_factory.mktemp("pair"))
    return open_dataset(str(train)), open_dataset(str(val))


def lines_of(lines: list[str]) -> dict[str, str]:
    return {line.split()[0]: line.partition(" ")[2].strip() for line in lines if line.split()[0] in FIVE}


FIVE = ("data", "model", "recipe", "augmentation", "place")


def test_a_training_prints_what_it_decided_and_whether_it_is_the_default(pair: tuple[TokenDataset, TokenDataset], tmp_path: Path) -> None:
    data, val = pair
    configs = default_configs(data)
    configs["train"] = replace(configs["train"], epochs=1, device="cpu")
    configs["loader"] = replace(configs["loader"], cache_dir=str(tmp_path / "cache"))
    said = lines_of(fit(TrainRequest(data=data, val=None, out=Store(str(tmp_path / "default")), **configs)).lines)
    assert tuple(said) == FIVE
    assert said["data"].startswith("70 images of 3 classes, 4 x 4 sites with 2 ids; nothing is measured")
    assert said["model"].startswith("vit_nano, ") and said["model"].endswith("(the default for 70 images)")
    assert said["recipe"].startswith("1 epoch of 4 steps of 16 images, AdamW at 0.002") and said["recipe"].endswith("(as given)")
    assert said["augmentation"].startswith("mild: random-resized crop from 35%, synonyms 25%") and "default" in said["augmentation"]
    assert said["place"] == "cpu in fp32, one process, seed 0"
    assert "after 0.5 epochs of warm-up (cut from 2 to half of the training; more --epochs leave it whole), weight" in said["recipe"]
    given = lines_of(fit(request_for(data, tmp_path / "given", tmp_path / "cache", val=val, epochs=1, train_part="head")).lines)
    assert given["data"].endswith("; measured on 20 images") and given["augmentation"].endswith("(as given)")
    assert "51 of them trained (as given)" in given["model"]


def test_the_defaults_of_a_share_are_those_of_all_images(pair: tuple[TokenDataset, TokenDataset], tmp_path: Path) -> None:
    data = select(pair[0], fraction=0.5)
    configs = default_configs(data)
    configs["train"] = replace(configs["train"], epochs=4, warmup_epochs=2, device="cpu")
    configs["loader"] = replace(configs["loader"], cache_dir=str(tmp_path / "cache"))
    reporter = KeptReporter()
    request = TrainRequest(data=data, val=None, out=Store(str(tmp_path / "run")), **configs)
    Trainer(request, Ranks(), torch.device("cpu"), reporter)._begin()
    said = lines_of(reporter.lines)
    assert said["data"].startswith(f"{len(data)} images of 3 classes")
    assert said["model"].endswith(f"(the default for 70 images, of which {len(data)} are used)")
    assert "after 2 epochs of warm-up, weight decay" in said["recipe"]


def test_the_map_that_a_timm_model_sees_is_said(pair: tuple[TokenDataset, TokenDataset], tmp_path: Path) -> None:
    allow_torchvision()
    pytest.importorskip("timm", reason="timm (an extra) is not installed")
    model = ModelConfig(name="timm:resnet10t")
    reporter = KeptReporter()
    Trainer(request_for(pair[0], tmp_path / "run", tmp_path / "cache", model=model), Ranks(), torch.device("cpu"), reporter)._begin()
    assert ", which sees the sites as a map of 16 x 16 (as given)" in lines_of(reporter.lines)["model"]


def test_no_augmentation_has_a_word() -> None:
    assert augmentation_words(AugmentConfig.off()) == "none"
    assert augmentation_words(AugmentConfig(mixup_alpha=0.2)).endswith("CutMix 100%, Mixup 100%")
    assert augmentation_words(AugmentConfig()).startswith("seit: ")
    assert augmentation_words(AugmentConfig(ops="rrc(),cutmix( )")) == "rrc(), cutmix()"


def test_a_small_set_is_learnt_by_heart(pair: tuple[TokenDataset, TokenDataset], tmp_path: Path) -> None:
    request = request_for(
        pair[0],
        tmp_path / "run",
        tmp_path / "cache",
        augment=AugmentConfig.off(),
        epochs=60,
        lr=5e-3,
        label_smoothing=0.0,
        weight_decay=0.0,
        ema_decay=0.0,
        loader={"end": "pad"},
    )
    assert fit(replace(request, model=replace(request.model, drop_path=0.0, width=32))).records[-1]["train_top1"] == 1.0
