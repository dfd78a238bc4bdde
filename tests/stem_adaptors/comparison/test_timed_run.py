"""Trainings on subsets of datasets anywhere, and the names of their results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.shards import open_dataset
from tokenshards.stem_adaptors.comparison import timed_run
from tokenshards.stem_adaptors.comparison.paired import unpacked
from tokenshards.stem_adaptors.comparison.timed_run import Run, train_run
from tokenshards.stem_adaptors.data.selection import Selection, labels_of
from tokenshards.stem_adaptors.data.subsets import Subset, subset_of

WHOLE = Run(side="sides/k", data="d", seed=1, seconds=60.0)


def test_a_training_on_all_images_keeps_the_name_that_it_had_before_there_were_subsets() -> None:
    assert WHOLE.key == "462500452a8b6757"


def test_a_subset_has_its_own_results_wherever_its_data_lie() -> None:
    part = replace(WHOLE, subset=Subset(choice="random", images=9))
    others = [replace(part, seed=2), replace(part, data="e"), replace(part, subset=Subset(choice="stratified", images=9)), WHOLE]
    others.append(replace(part, subset=Subset(choice="random", images=10)))
    assert len({run.path for run in [part, *others]}) == 6
    assert replace(part, train_url="/data/train.tokens", val_url="/data/val.tokens").key == part.key


def test_a_training_learns_from_its_subset_and_matches_classes_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes to measure have other numbers, and one that is unknown counts as wrong."""
    write_images(tmp_path / "src", 24, seed=1)
    write_images(tmp_path / "val_src", 12, seed=2)
    (tmp_path / "val_src" / "class_2").rename(tmp_path / "val_src" / "another")  # the first of the table
    convert(tmp_path / "src", tmp_path / "train", runner=InlineRunner())
    convert(tmp_path / "val_src", tmp_path / "val", tokenizer=str(tmp_path / "train" / "tokenizer"), runner=InlineRunner())
    train, val = (open_dataset(str(tmp_path / part)) for part in ("train", "val"))
    assert val.classes == ("another", "class_0", "class_1")
    seen: list[Any] = []

    class Watched(timed_run.TimedTrainer):
        def train(self) -> None:
            seen.append(self)
            self.model.train()
            bias = self.model.backbone.head.bias  # type: ignore[union-attr]
            bias.data[:] = bias.data.new_tensor([0.0, 1e4, 0.0])  # every image is of class_1

    monkeypatch.setattr(timed_run, "TimedTrainer", Watched)
    subset = Subset(choice="stratified", images=6)
    run = Run(side="tokens", data="d", seed=3, seconds=1.0, train_url=str(tmp_path / "train"), val_url=str(tmp_path / "val"), subset=subset)
    found = train_run(str(tmp_path / "out"), {}, run)
    data = seen[0].request.data
    assert isinstance(data, Selection) and data.digest == subset_of(train, subset, 3).digest and seen[0].request.loader.batch_size == 6
    expected = [label == val.classes.index("class_1") for label in labels_of(val)]
    assert unpacked([found["right"]], found["images"])[0].astype(bool).tolist() == expected and 0 < np.mean(expected) < 1
    assert found["run"] == run.key and (tmp_path / "out" / run.path).exists()
