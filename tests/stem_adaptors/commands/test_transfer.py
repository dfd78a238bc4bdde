"""`train --pretrained RUN` on other images, classes, tokenizers and layouts: the encoder is kept, and what starts fresh is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tokenshards
from tests.datasets import write_images
from tokenshards.stem_adaptors.training.run_directory import open_classifier

SMALL = {"model.width": 32, "model.depth": 2, "model.heads": 2}
STILL = {**SMALL, "train.lr": 1e-12, "train.min_lr": 0.0}
"""A rate that moves nothing, so that the weights after a training are those that it began with."""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two levels of 8 x 8 sites of three classes."""
    folder = tmp_path_factory.mktemp("first")
    write_images(folder / "images", 24)
    tokenshards.tokenize(folder / "images", folder / "tokens", size=32, codes=16, workers=1)
    tokenshards.train(folder / "tokens", folder / "run", epochs=1, batch_size=8, device="cpu", set=SMALL)
    return folder / "run"


@pytest.mark.parametrize(
    ("classes", "options", "fresh"),
    [
        (3, {"size": 32, "codes": 16, "seed": 9}, set()),
        (5, {"size": 32, "codes": 16}, {"head.weight", "head.bias"}),
        (3, {"kind": "layered-kmeans", "size": 32, "codes": 8}, {"patch_embed.proj.weight"}),
        (5, {"size": 16, "patch": 4, "levels": 1, "codes": 8}, {"head.weight", "head.bias"}),
    ],
    ids=["other codes", "other classes", "ids for recognition", "another size and one level"],
)
def test_the_encoder_is_kept_and_what_is_fresh_is_told(
    first: Path, tmp_path: Path, classes: int, options: dict[str, Any], fresh: set[str]
) -> None:
    write_images(tmp_path / "images", 30, classes=classes, seed=4)
    tokenshards.tokenize(tmp_path / "images", tmp_path / "tokens", workers=1, **options)
    given: dict[str, Any] = {"epochs": 1, "batch_size": 8, "device": "cpu", "set": STILL}
    report = tokenshards.train(tmp_path / "tokens", tmp_path / "run", pretrained=str(first), **given)
    told = next(line for line in report.said if "tensors loaded" in line)
    named = told.partition("left fresh: ")[2].partition(";")[0]
    assert {name.partition(" (")[0] for name in named.split(", ") if "_" in name or "head" in name} == fresh
    before, after = (open_classifier(run)[0].backbone.state_dict() for run in (first, tmp_path / "run"))
    kept = {name for name in before if name not in fresh and name != "pos_embed"}
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in kept) and len(kept) > 20
    assert "another tokenizer" in told
