"""The same batches through torch's DataLoader and torchdata's StatefulDataLoader, with workers and exact places."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests.pipeline.shards.test_dataset import build
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.loader import TokenLoader, TrainingData
from tokenshards.stem_adaptors.data.mixing import mix
from tokenshards.stem_adaptors.data.selection import select
from tokenshards.stem_adaptors.data.torch_loader import BatchDataset, StepSampler

# torchdata 0.11 calls a function that torch 2.13 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    root = tmp_path_factory.mktemp("torch_data")
    build(root, [13, 8, 21, 5, 17], "sequence_variable")
    return open_dataset(str(root))


def same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for left, right in zip(found, expected, strict=True):
        assert (left.epoch, left.seed, left.ids_BLQ.dtype) == (right.epoch, right.seed, right.ids_BLQ.dtype)
        for name in ("ids_BLQ", "labels_B", "weights_B", "positions_B", "rows_B", "lengths_B"):
            assert torch.equal(getattr(left, name), getattr(right, name)), name


def plain(data: TrainingData, config: LoaderConfig, workers: int = 0, **options: Any) -> DataLoader[Batch]:
    dataset, steps = BatchDataset(data, config), StepSampler(data, config)
    return DataLoader(dataset, batch_size=None, sampler=steps, num_workers=workers, **options)


@pytest.mark.parametrize("order", ["global", "windowed"])
def test_epochs_equal_those_of_the_token_loader(dataset: TokenDataset, cache: str, order: str) -> None:
    config = LoaderConfig(order=order, batch_size=6, end="pad", window_shards=2, cache_dir=cache)
    for data in (dataset, select(dataset, fraction=0.7), mix([(dataset, 2), (select(dataset, classes=["class_1"]), 1)])):
        loader, expected = plain(data, config), TokenLoader(data, config)
        assert len(loader) == len(expected)
        for _ in range(2):
            same(list(loader), list(expected))


@pytest.mark.parametrize(("method", "workers", "order"), [("fork", 2, "windowed"), ("spawn", 1, "global")])
def test_worker_processes_give_the_same_batches(dataset: TokenDataset, cache: str, method: str, workers: int, order: str) -> None:
    config = LoaderConfig(order=order, batch_size=8, window_shards=2, cache_dir=cache)
    loader = plain(dataset, config, workers, multiprocessing_context=method, persistent_workers=True)
    loader.dataset[next(iter(StepSampler(dataset, config)))]  # what this process has opened must not travel
    for epoch in range(2):
        same(list(loader), list(TokenLoader(dataset, config).epoch(epoch)))


def test_what_travels_to_a_worker_is_small(dataset: TokenDataset, cache: str) -> None:
    config = LoaderConfig(batch_size=8, cache_dir=cache)
    batches = BatchDataset(dataset, config)
    closed = len(pickle.dumps(batches))
    batches[next(iter(StepSampler(dataset, config)))]
    assert len(pickle.dumps(batches)) == closed < 20_000


def test_a_plain_loader_resumes_after_the_last_batch_used(dataset: TokenDataset, cache: str) -> None:
    config = LoaderConfig(batch_size=6, cache_dir=cache)
    expected = list(TokenLoader(dataset, config).epoch(2))
    rank_1 = [next(iter(TokenLoader(dataset, config, rank=1, world_size=2).epoch(2)))]
    loader = plain(dataset, config)
    assert isinstance(loader.sampler, StepSampler)
    loader.sampler.set_epoch(2)
    batches = iter(loader)
    used = [next(batches) for _ in range(4)]
    state = loader.sampler.state_after(used[-1])
    assert (state["epoch"], state["next_global_index"]) == (2, 24)
    again = plain(dataset, config)
    assert isinstance(again.sampler, StepSampler)
    again.sampler.resume(state)
    same([*used, *again], expected)
    # The place is that of all ranks, and is understood by the token loader.
    assert StepSampler(dataset, config, rank=1, world_size=2).state_after(rank_1[0])["next_global_index"] == 6
    other = TokenLoader(dataset, config)
    other.load_state_dict(state)
    same(list(other), expected[4:])


@pytest.mark.parametrize(("workers", "stop"), [(0, 0), (0, 3), (0, 10), (0, 11), (2, 3), (2, 10), (2, 11)])
def test_a_stateful_loader_counts_delivered_batches(dataset: TokenDataset, cache: str, workers: int, stop: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    config = LoaderConfig(batch_size=6, cache_dir=cache)
    whole = TokenLoader(dataset, config)
    expected = list(whole.epoch(0)) + list(whole.epoch(1))
    assert len(whole) == 10

    def make() -> Any:
        context = "fork" if workers else None
        return stateful.StatefulDataLoader(
            BatchDataset(dataset, config),
            batch_size=None,
            sampler=StepSampler(dataset, config),
            num_workers=workers,
            multiprocessing_context=context,
        )

    first = make()
    batches = iter(first)
    # 11 asks once more than there are batches: the state is then that of a finished epoch.
    used = [batch for _ in range(stop) if (batch := next(batches, None)) is not None]
    state = first.state_dict()
    del batches, first
    second = make()
    second.load_state_dict(state)
    for _ in range(2):
        used += list(second)
    same(used[:20], expected)
    # Stopped at the last batch, the rest of that epoch is empty; after its end, the next one follows at once.
    assert len(used) == (20 if stop <= 10 else 30)


def test_a_stateful_loader_refuses_a_state_of_other_data(dataset: TokenDataset, cache: str) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def make(seed: int) -> Any:
        config = LoaderConfig(batch_size=6, seed=seed, cache_dir=cache)
        return stateful.StatefulDataLoader(BatchDataset(dataset, config), batch_size=None, sampler=StepSampler(dataset, config))

    first = make(0)
    next(iter(first))
    other = make(1)
    other.load_state_dict(first.state_dict())
    with pytest.raises(ConfigError, match="^seed of the loader state is 0"):
        iter(other)


def test_a_corrupt_shard_is_named(tmp_path: Path) -> None:
    build(tmp_path, [10, 10])
    data = open_dataset(str(tmp_path))
    path = tmp_path / str(data.shards[1].path)
    path.write_bytes(path.read_bytes()[:-100].ljust(data.shards[1].size, b"\0"))
    config = LoaderConfig(batch_size=5, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(CorruptObjectError, match="rows 10 to 19"):
        list(plain(data, config))
    # torch can carry only the text of an error with two arguments out of a worker.
    with pytest.raises(RuntimeError, match=f"CorruptObjectError: {data.shards[1].path}(.|\n)*rows 10 to 19"):
        list(plain(data, config, 1, multiprocessing_context="fork"))


def test_the_sampler_begins_the_next_epoch_after_an_abandoned_pass(dataset: TokenDataset, cache: str) -> None:
    config = LoaderConfig(batch_size=8, cache_dir=cache)
    steps = StepSampler(dataset, config)
    next(iter(steps))
    begun = iter(steps)
    assert [next(begun).epoch, next(begun).epoch] == [1, 1]
    steps.resume(TokenLoader(dataset, config).state_dict() | {"epoch": 4, "next_global_index": config.batch_size})
    rest = iter(steps)
    assert (next(rest).epoch, steps.next_state.epoch, len(list(iter(steps)))) == (4, 5, len(steps))
