"""Datasets that `open_dataset` joins train like one dataset: every row once an epoch, classes by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenshards
from tests.datasets import convert, write_images
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.stem_adaptors.training.run_directory import statistics_of


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("joined")
    write_images(folder / "a_photos", 20, classes=2)
    write_images(folder / "b_photos", 15, classes=3, seed=1)
    convert(folder / "a_photos", folder / "a", fit=FitConfig(size=16, codes=16, iterations=4), shard_rows=8)
    convert(folder / "b_photos", folder / "b", tokenizer=str(folder / "a" / "tokenizer"), shard_rows=8)
    return folder / "a", folder / "b"


@pytest.mark.parametrize("order", ["global", "windowed", "sequential"])
def test_an_epoch_has_every_row_of_all_parts_once(places: tuple[Path, Path], tmp_path: Path, order: str) -> None:
    both = tokenshards.open_dataset(places)
    settings: dict[str, Any] = {"order": order, "batch_size": 7, "cache_dir": str(tmp_path), "window_shards": 2}
    loader = tokenshards.TokenLoader(both, tokenshards.LoaderConfig(**settings))
    batches = list(loader)
    rows = np.concatenate([batch.rows_B.numpy() for batch in batches])
    assert sorted(rows.tolist()) == list(range(35)) and (order == "sequential") == (rows.tolist() == list(range(35)))
    for batch in batches:
        for row, ids_LQ, label in zip(batch.rows_B.tolist(), batch.ids_BLQ.numpy(), batch.labels_B.tolist(), strict=True):
            np.testing.assert_array_equal(ids_LQ, both[row].ids_LQ)
            assert both.classes[label] == both[row].label
    state = loader.state_dict()
    again = tokenshards.TokenLoader(tokenshards.open_dataset(places), tokenshards.LoaderConfig(**settings))
    again.load_state_dict(state)
    with pytest.raises(ConfigError, match="manifest of the loader state"):
        tokenshards.TokenLoader(tokenshards.open_dataset(places[::-1]), tokenshards.LoaderConfig(**settings)).load_state_dict(state)
    loader.close()


def test_a_model_fits_the_joined_classes_and_the_shared_tokenizer(places: tuple[Path, Path]) -> None:
    both = tokenshards.open_dataset(places)
    model, _ = tokenshards.build("vit_nano", both)
    assert model.backbone.head.out_features == 3
    for found, expected in zip(statistics_of(both) or (), statistics_of(tokenshards.open_dataset(places[0])) or (), strict=True):
        np.testing.assert_array_equal(found, expected)
