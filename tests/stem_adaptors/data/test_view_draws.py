"""Datasets with several views of an image: an epoch sees each image once, by a view drawn for it; evaluation sees view 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tests.stem_adaptors.training.small_runs import fit, request_for
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.commands.evaluation_report import evaluate_run
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader, TrainingData
from tokenshards.stem_adaptors.data.mixing import mix
from tokenshards.stem_adaptors.data.order import drawn_views
from tokenshards.stem_adaptors.data.selection import sample_count, select
from tokenshards.stem_adaptors.data.torch_loader import BatchDataset, StepSampler
from tokenshards.stem_adaptors.training.defaults import default_configs

IMAGES, VIEWS = 46, 3
ORDERS = ("global", "windowed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of the same images with three views, mirrored, and with one view; a broken image, and several shards each."""
    folder = tmp_path_factory.mktemp("several")
    write_images(folder / "src", IMAGES, bad=1)
    convert(folder / "src", folder / "one", shard_rows=10, runner=InlineRunner())
    for views in ("3", "flip"):
        convert(folder / "src", folder / views, views=views, shard_rows=10, runner=InlineRunner(), tokenizer=str(folder / "one"))
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> TokenDataset:
    return open_dataset(str(folder / "3"))


def config(folder: Path, **changes: object) -> LoaderConfig:
    fields = {"batch_size": 7, "end": "pad", "seed": 5, "window_shards": 2, "cache_dir": str(folder / "cache"), **changes}
    return LoaderConfig(**fields)  # type: ignore[arg-type]


def rows_of(data: TrainingData, config: LoaderConfig, epoch: int, ranks: int = 1) -> np.ndarray:
    """Return the dataset rows of an epoch, of all ranks, in the order of positions; repeats that fill the last batch are left out."""
    batches = [batch for rank in range(ranks) for batch in TokenLoader(data, config, rank=rank, world_size=ranks).epoch(epoch)]
    rows, weights, places = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("rows_B", "weights_B", "positions_B"))
    return rows[places.argsort()][weights[places.argsort()] > 0].numpy()


@pytest.mark.parametrize("order", ORDERS)
def test_every_image_comes_once_an_epoch_by_changing_views(dataset: TokenDataset, folder: Path, order: str) -> None:
    stored = next(dataset.batches(len(dataset)))
    assert len(stored) == IMAGES * VIEWS, "the dataset itself gives all rows"
    seen = np.zeros((IMAGES, VIEWS), int)
    loader = TokenLoader(dataset, config(folder, order=order))
    assert len(loader) == -(-IMAGES // 7)
    for epoch in range(12):
        rows = rows_of(dataset, config(folder, order=order), epoch)
        assert sorted(rows // VIEWS) == list(range(IMAGES))
        assert len(set(rows % VIEWS)) == VIEWS
        seen[rows // VIEWS, rows % VIEWS] += 1
        if epoch == 0:
            for batch in loader.epoch(epoch):
                assert np.array_equal(batch.ids_BLQ.numpy(), stored.ids_BLQ[batch.rows_B.numpy()])
                assert np.array_equal(batch.labels_B.numpy(), stored.labels_B[batch.rows_B.numpy()])
    assert (seen > 0).mean() > 0.95 and abs(seen.mean(axis=0) - 4).max() < 1


@pytest.mark.parametrize("order", ORDERS)
def test_views_do_not_depend_on_ranks_batches_or_a_resume(dataset: TokenDataset, folder: Path, order: str) -> None:
    expected = rows_of(dataset, config(folder, order=order), 3)
    assert not np.array_equal(expected, rows_of(dataset, config(folder, order=order, seed=6), 3))
    for ranks, batch_size in ((2, 7), (3, 6), (1, 46)):
        assert np.array_equal(rows_of(dataset, config(folder, order=order, batch_size=batch_size), 3, ranks), expected)
    first = TokenLoader(dataset, config(folder, order=order))
    batches = first.epoch(3)
    taken = [next(batches).rows_B for _ in range(2)]
    second = TokenLoader(dataset, config(folder, order=order))
    second.load_state_dict(first.state_dict())
    rest = [batch.rows_B[batch.weights_B > 0] for batch in second]
    assert np.array_equal(torch.cat(taken + rest).numpy(), expected)
    by_order = [np.sort(rows_of(dataset, config(folder, order=name), 3)) for name in ORDERS]
    assert np.array_equal(*by_order), "the order decides when an image comes, not how"


def test_evaluation_reads_view_0(dataset: TokenDataset, folder: Path) -> None:
    for epoch in (0, 1):
        rows = rows_of(dataset, config(folder, order="sequential"), epoch)
        assert rows.tolist() == list(range(0, IMAGES * VIEWS, VIEWS))


def test_torch_loaders_give_the_same_views(dataset: TokenDataset, folder: Path) -> None:
    loading = config(folder)
    steps = StepSampler(dataset, loading)
    assert len(steps) == -(-IMAGES // 7)
    found = [batch.rows_B for batch in DataLoader(BatchDataset(dataset, loading), batch_size=None, sampler=steps)]
    assert [rows.tolist() for rows in found] == [batch.rows_B.tolist() for batch in TokenLoader(dataset, loading).epoch(0)]


@pytest.mark.parametrize("order", ORDERS)
def test_selections_and_mixes_are_of_images(dataset: TokenDataset, folder: Path, order: str) -> None:
    half, one_class = select(dataset, fraction=0.5), select(dataset, classes=["class_1"])
    assert sample_count(dataset) == IMAGES and len(half) == sample_count(half) == 24
    one = open_dataset(str(folder / "one"))
    assert (half.rows_n // VIEWS).tolist() == select(one, fraction=0.5).rows_n.tolist()
    everything = {row // VIEWS: row for row in rows_of(dataset, config(folder, order=order), 2).tolist()}
    for part in (half, one_class, select(half, rows=half.rows_n[:9])):
        rows = rows_of(part, config(folder, order=order), 2)
        assert sorted(rows // VIEWS * VIEWS) == part.rows_n.tolist()
        assert rows.tolist() == [everything[row // VIEWS] for row in rows.tolist()]
    with pytest.raises(ConfigError, match=r"rows has \[4\]; expected rows of the data, of view 0"):
        select(dataset, rows=[3, 4])
    mixed = mix([(dataset, 1), (one, 1), (half, 1)])
    assert len(mixed) == 2 * IMAGES + 24
    batches = list(TokenLoader(mixed, config(folder, order=order, batch_size=3, end="drop")).epoch(0))
    for part, size in enumerate((IMAGES * VIEWS, IMAGES, IMAGES * VIEWS)):
        rows = np.array([batch.rows_B[batch.positions_B % 3 == part].item() for batch in batches])
        views = 1 if part == 1 else VIEWS
        assert rows.max() < size and len(set((rows // views).tolist())) == min(len(rows), IMAGES if part < 2 else 24)


def test_draws_are_uniform_and_unlike_from_epoch_to_epoch() -> None:
    samples = np.arange(30_000)
    for views in (2, 5, 10, 64):
        first, second = (drawn_views(samples, seed=1, epoch=epoch, views=views) for epoch in (0, 1))
        expected = len(samples) / views
        for drawn in (first, second):
            counts = np.bincount(drawn, minlength=views)
            assert len(counts) == views and np.square(counts - expected).sum() / expected < views + 5 * (2 * views) ** 0.5
        pairs = np.bincount(first * views + second, minlength=views**2)
        expected /= views
        assert np.square(pairs - expected).sum() / expected < views**2 + 5 * (2 * views**2) ** 0.5
        neighbours = np.bincount(first[:-1] * views + first[1:], minlength=views**2)
        assert np.square(neighbours - expected).sum() / expected < views**2 + 5 * (2 * views**2) ** 0.5


def test_a_training_and_its_evaluation_count_images(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, val = open_dataset(str(folder / "3")), open_dataset(str(folder / "flip"))
    monkeypatch.setattr("tokenshards.stem_adaptors.training.defaults._SAMPLES_SEEN", 60 * IMAGES)  # as for so many images, not so few rows
    assert default_configs(data)["train"].epochs == 60
    reporter = fit(request_for(data, tmp_path / "run", folder / "cache", val=val, epochs=2))
    assert [record["val_images"] for record in reporter.records] == [IMAGES, IMAGES]
    assert [record["step"] for record in reporter.records] == [IMAGES // 16, 2 * (IMAGES // 16)]
    store, device = Store(str(tmp_path / "run")), torch.device("cpu")
    several, one = (evaluate_run(store, open_dataset(str(folder / name)), weights="last", device=device) for name in ("flip", "one"))
    assert several.accuracy.images == IMAGES and several.left_out == 0
    assert several.accuracy.top1 == one.accuracy.top1
    assert abs(several.accuracy.loss - one.accuracy.loss) < 0.02, "the same ids, but for those that another batching flips"
