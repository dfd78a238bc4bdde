"""What is no dataset, no config and no setting is refused with a sentence; loaders and rows can be copied and compared."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

import tokenshards
from tests.pipeline.shards.test_dataset import build
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.data.selection import select
from tokenshards.stem_adaptors.data.torch_loader import BatchDataset, StepSampler


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tokenshards.TokenDataset:
    root = tmp_path_factory.mktemp("given")
    build(root, [13, 8, 5], "grid_residual")
    return tokenshards.open_dataset(root)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENSHARDS_CACHE", str(tmp_path_factory.getbasetemp() / "given_cache"))


READERS: dict[str, Callable[[Any], object]] = {
    "TokenLoader": lambda data: tokenshards.TokenLoader(data, batch_size=4),
    "TokenSamples": tokenshards.TokenSamples,
    "TokenSamples like": lambda data: tokenshards.TokenSamples(data, like=data),
    "TokenStream": tokenshards.TokenStream,
    "TokenPipeline": lambda data: tokenshards.TokenPipeline(data),
    "TokenDataModule": lambda data: tokenshards.TokenDataModule(data),
    "BatchDataset": BatchDataset,
    "StepSampler": StepSampler,
    "build": lambda data: tokenshards.build("vit_nano", data),
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_dataset_is_refused_with_a_sentence(name: str, dataset: tokenshards.TokenDataset) -> None:
    allow_torchvision()
    given: dict[str, Any] = {
        r"expected a dataset: tokenshards.open_dataset\('photos.tokens'\)": "photos.tokens",
        r"tokenshards.open_dataset\('photos'\)": Path("photos"),
        r"A slice of one is rows in memory; .* select\(dataset, rows=": dataset[:10],
        "of type list; expected a dataset": [1, 2],
        "of type NoneType; expected a dataset": None,
        r"of type Subset; expected a": Subset(dataset, [1, 2]),  # type: ignore[arg-type]
    }
    for words, data in given.items():
        with pytest.raises(ConfigError, match=words):
            READERS[name](data)


def test_a_stream_wants_a_whole_dataset(dataset: tokenshards.TokenDataset) -> None:
    with pytest.raises(ConfigError, match="of type Selection; expected a whole dataset"):
        tokenshards.TokenStream(select(dataset, fraction=0.5))  # type: ignore[arg-type]


def test_settings_are_named_and_of_their_type(dataset: tokenshards.TokenDataset, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="config is 64, of type int; expected a tokenshards.LoaderConfig, or settings by name, such as batch_"
    ):
        tokenshards.TokenLoader(dataset, 64)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no setting 'batchsize' of LoaderConfig .did you mean 'batch_size'"):
        tokenshards.TokenLoader(dataset, batchsize=8)
    for setting, words in (
        ({"seed": "a"}, "seed is 'a', of type str; expected a whole number"),
        ({"seed": 1.5}, "seed is 1.5, of type float; expected a whole number"),
        ({"batch_size": 64.0}, "batch_size is 64.0, of type float; expected a whole number"),
        ({"batch_size": True}, "batch_size is True, of type bool"),
        ({"order": 3}, "order is 3, of type int; expected a text"),
        ({"cache_gb": "64"}, "cache_gb is '64', of type str; expected a number"),
    ):
        with pytest.raises(ConfigError, match=words):
            tokenshards.TokenLoader(dataset, **setting)
    for make, words in (
        (lambda: tokenshards.TrainConfig(epochs=1.5), "epochs is 1.5"),  # type: ignore[arg-type]
        (lambda: tokenshards.TrainConfig(compile=1), "compile is 1, of type int; expected True or False"),  # type: ignore[arg-type]
        (lambda: tokenshards.AugmentConfig(noise_prob="0.5"), "noise_prob is '0.5'"),  # type: ignore[arg-type]
        (lambda: tokenshards.ModelConfig(depth=2.0), "depth is 2.0, of type float; expected a whole number or None"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=words):
            make()
    config = tokenshards.LoaderConfig(batch_size=np.int64(8), cache_gb=np.float32(2), cache_dir=tmp_path)  # type: ignore[arg-type]
    assert (config.batch_size, config.cache_gb, config.cache_dir) == (8, 2.0, str(tmp_path))
    assert (type(config.batch_size), type(config.cache_gb)) == (int, float)


@pytest.mark.parametrize("order", ["global", "windowed"])
def test_a_loader_goes_through_pickle_and_stays_in_its_place(dataset: tokenshards.TokenDataset, order: str) -> None:
    loader = tokenshards.TokenLoader(dataset, order=order, batch_size=8, classes=dataset.classes)
    batches = iter(loader)
    next(batches)
    copy = pickle.loads(pickle.dumps(loader))
    assert copy.state_dict() == loader.state_dict() and repr(copy) == repr(loader) and copy.classes == loader.classes
    assert list(copy) == list(loader)
    loader.load_state_dict({**loader.state_dict(), "epoch": 5, "next_global_index": 8})
    copy = pickle.loads(pickle.dumps(loader))
    assert [batch.epoch for batch in copy] == [5, 5]


def test_rows_and_batches_are_compared_by_content(dataset: tokenshards.TokenDataset) -> None:
    assert dataset[0] == dataset[0] and dataset[0] != dataset[1] and dataset[0] != 1
    assert dataset[:4] == dataset[:4] and dataset[:4] != dataset[1:5] and dataset[0].sample_id == dataset[:1].sample_ids[0]
    batch = next(iter(tokenshards.TokenLoader(dataset, batch_size=4)))
    same = replace(batch, labels_B=batch.labels_B.clone())
    assert same == batch and replace(batch, labels_B=batch.labels_B + 1) != batch and replace(batch, epoch=3) != batch
    assert replace(batch, ids_BLQ=batch.ids_BLQ.to(torch.int64)) != batch and batch != 4


def test_a_list_of_rows_is_refused_with_what_to_do(dataset: tokenshards.TokenDataset) -> None:
    for rows in ([1, 2, 3], np.array([1, 2]), 1.5):
        with pytest.raises(ConfigError, match=r"the place is .*select\(dataset, rows=rows\)"):
            dataset[rows]  # type: ignore[call-overload]
    assert dataset[np.int64(2)] == dataset[2]


def test_the_data_module_prints(dataset: tokenshards.TokenDataset) -> None:
    allow_torchvision()
    data = tokenshards.TokenDataModule(dataset, batch_size=8)
    assert str(data) == repr(data) and "batch_size=8" in str(data)
