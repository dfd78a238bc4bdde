"""A reader that is not told its rank finds it, or refuses: all ranks would get the same samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from torch.utils.data import DataLoader

import tokenshards
from tests.datasets import convert, write_images
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.stem_adaptors.data.torch_loader import BatchDataset, StepSampler


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tokenshards.TokenDataset:
    folder = tmp_path_factory.mktemp("ranks")
    write_images(folder / "photos", 24)
    convert(folder / "photos", folder / "tokens", fit=FitConfig(size=16, codes=16, iterations=4))
    return tokenshards.open_dataset(folder / "tokens")


def config(folder: Path) -> tokenshards.LoaderConfig:
    return tokenshards.LoaderConfig(batch_size=8, cache_dir=str(folder / "cache"))


def under_torchrun(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))


def test_the_environment_of_torchrun_shares_the_samples(
    dataset: tokenshards.TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for rank in range(2):
        under_torchrun(monkeypatch, rank)
        found = [batch.rows_B.tolist() for batch in tokenshards.TokenLoader(dataset, config(tmp_path))]
        steps = StepSampler(dataset, config(tmp_path))
        torchs = DataLoader(BatchDataset(dataset, config(tmp_path)), batch_size=None, sampler=steps)
        assert [batch.rows_B.tolist() for batch in torchs] == found
        rows += [row for batch in found for row in batch]
        whole = tokenshards.TokenLoader(dataset, config(tmp_path), rank=0, world_size=1)
        assert sum(len(batch.rows_B) for batch in whole) == 24, "what is given is not overruled"
    assert sorted(rows) == list(range(24))


def test_a_group_joined_after_the_loader_was_made_counts(
    dataset: tokenshards.TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = tokenshards.TokenLoader(dataset, config(tmp_path))
    under_torchrun(monkeypatch, 1)
    batches = list(loader)
    assert (loader.rank, loader.world_size) == (1, 2) and [len(batch) for batch in batches] == [4, 4, 4]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert [len(batch) for batch in loader] == [8, 8, 8], "torch.distributed knows better than the environment"
    finally:
        dist.destroy_process_group()


def test_half_of_the_answer_is_refused(dataset: tokenshards.TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="rank is 1 and world_size is None; expected both or neither"):
        tokenshards.TokenLoader(dataset, config(tmp_path), rank=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="every process would read the same samples. Give rank= and world_size="):
        tokenshards.TokenLoader(dataset, config(tmp_path))


def test_settings_of_the_reader_may_be_given_by_name(dataset: tokenshards.TokenDataset, tmp_path: Path) -> None:
    loader = tokenshards.TokenLoader(dataset, config(tmp_path), batch_size=5, end="pad")
    assert loader.config.cache_dir == str(tmp_path / "cache") and [len(batch) for batch in loader] == [5] * 5
    with pytest.raises(TypeError, match="batchsize"):
        tokenshards.TokenLoader(dataset, batchsize=5)
