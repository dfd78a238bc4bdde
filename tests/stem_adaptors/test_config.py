"""Settings given as text reach the field they name, or say what there is."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

import tokenshards
from tests.datasets import call_cli
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.segment_config import SegmentConfig
from tokenshards.stem_adaptors.settings import with_settings


def configs() -> dict[str, Any]:
    return {
        "model": ModelConfig(),
        "augment": AugmentConfig(),
        "loader": LoaderConfig(),
        "train": TrainConfig(),
        "mask": MaskConfig(),
        "segment": SegmentConfig(),
    }


def test_settings_are_parsed_by_the_kind_of_their_field() -> None:
    found = with_settings(
        configs(),
        ["augment.noise_prob=0", "train.epochs=3", "model.name=timm:resnet18", "model.width=64", "train.compile=true", "model.depth=null"],
    )
    assert found["augment"].noise_prob == 0
    assert found["train"].epochs == 3 and found["train"].compile is True
    assert (found["model"].name, found["model"].width, found["model"].depth) == ("timm:resnet18", 64, None)
    assert found["loader"] == LoaderConfig()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("noise_prob=1", r"PART\.FIELD=VALUE"),
        ("augment.noise_prob", r"PART\.FIELD=VALUE"),
        ("augmentation.noise_prob=1", "expected one of augment, loader, mask, model, segment, train"),
        ("augment.noise=1", "it has .*noise_prob"),
        ("train.epochs=many", "'many' is not of type int"),
        ("train.epochs=true", "'true' is not of type int"),
        ("train.epochs=1.5", "is not of type int"),
        ("train.compile=1", "is not of type bool"),
        ("augment.noise_prob=2", "from 0 to 1"),
        ("augment.swap_prob=0.9", "at most 1"),
        ("model.stem=fancy", "expected auto"),
    ],
)
def test_a_wrong_setting_says_what_was_expected(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_settings(configs(), [setting])


def test_settings_of_a_part_are_taken_together() -> None:
    """Either of these alone would be refused."""
    found = with_settings({"mask": MaskConfig()}, ["mask.ratio_min=0.2", "mask.drop_share=0.1", "mask.ratio_max=0.3"])
    assert (found["mask"].ratio_min, found["mask"].ratio_max, found["mask"].drop_share) == (0.2, 0.3, 0.1)
    with pytest.raises(ConfigError, match="mask.drop_share"):
        with_settings({"mask": MaskConfig()}, ["mask.ratio_min=0.2"])


def test_the_list_of_settings_holds_every_field_and_what_it_prints_is_taken() -> None:
    out, _ = call_cli("train", "--list-settings")
    lines = [line for line in out.splitlines()[1:]]
    assert [line.partition("=")[0] for line in lines] == [
        f"{part}.{field.name}" for part, config in configs().items() for field in fields(config)
    ]
    assert "train.compile=false (bool): Compile augmentation and model with torch.compile; it pays on a GPU." in lines
    assert with_settings(configs(), [line.partition(" (")[0] for line in lines]) == configs()
    assert "list_settings" not in inspect.signature(tokenshards.train).parameters


def test_no_augmentation_is_a_centre_crop_alone() -> None:
    off = AugmentConfig.off()
    assert off.crop == "centre"
    chances = ("synonym_prob", "swap_prob", "flip_prob", "dropout_prob", "noise_prob", "coloradapt_prob", "cutmix_prob")
    assert all(getattr(off, name) == 0 for name in chances)
