"""The linear probe: it finds what is linear, in every layout, and nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.datasets import convert
from tests.inline import InlineRunner
from tests.pipeline.tokenizers import toys
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.registry import temporary_family
from tokenshards.stem_adaptors.comparison.probe import _features, linear_probe

SIDE = toys.SIZE


def write_bright(folder: Path, count: int, seed: int) -> None:
    """Two classes: dark and bright noise. Of three, the middle one is no maximum of a line through one mean."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        pixels = rng.integers(0, 60, (SIDE, SIDE, 3)) + 150 * (index % 2)
        place = folder / f"class_{index % 2}" / f"{index:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place)


def write_halves(folder: Path, count: int, seed: int) -> None:
    """Two classes of the same mean: the upper half is brighter, or the lower one."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        pixels = rng.integers(0, 60, (SIDE, SIDE, 3))
        pixels[(index % 2) * SIDE // 2 :][: SIDE // 2] += 150
        place = folder / f"class_{index % 2}" / f"{index:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place)


def write_random(folder: Path, count: int, seed: int) -> None:
    """Three classes that no pixel tells apart."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        place = folder / f"class_{index % 3}" / f"{index:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(place)


def datasets(folder: Path, write: Callable[[Path, int, int], None], toy: type[toys.Toy] | None = None) -> list[TokenDataset]:
    """A training and a measured set, tokenized in this process."""
    write(folder / "train_images", 48, 1)
    write(folder / "val_images", 24, 2)
    small = {"runner": InlineRunner(), "shard_rows": 20}
    if toy is None:
        convert(folder / "train_images", folder / "train", **small)
        convert(folder / "val_images", folder / "val", tokenizer=str(folder / "train"), **small)
    else:
        with temporary_family(toy.family, f"{toy.__module__}:{toy.__qualname__}"):
            save_tokenizer(toy(), Store(str(folder / "tokenizer")))
            convert(folder / "train_images", folder / "train", tokenizer=str(folder / "tokenizer"), **small)
            convert(folder / "val_images", folder / "val", tokenizer=str(folder / "train"), **small)
    return [open_dataset(str(folder / part)) for part in ("train", "val")]


@pytest.mark.parametrize(
    "toy",
    [
        None,
        toys.PyramidToy,
        toys.VariableSequenceToy,
        toys.ConcatToy,
        toys.VariableGridToy,
        toys.FilmStripToy,
        toys.VariableFilmStripToy,
    ],
)
def test_separable_images_are_all_found(toy: type[toys.Toy] | None, tmp_path: Path) -> None:
    right_N = linear_probe(*datasets(tmp_path, write_bright, toy))
    assert right_N.dtype == bool and right_N.shape == (24,) and right_N.mean() == 1.0


def test_a_tokenizer_without_code_vectors_has_a_probe(tmp_path: Path) -> None:
    right_N = linear_probe(*datasets(tmp_path, write_bright, toys.FixedSequenceToy))
    assert right_N.shape == (24,)


def test_parts_of_a_grid_tell_where_something_is(tmp_path: Path) -> None:
    assert linear_probe(*datasets(tmp_path, write_halves)).mean() == 1.0


def test_noise_is_not_learnt(tmp_path: Path) -> None:
    assert linear_probe(*datasets(tmp_path, write_random)).mean() < 0.7


def test_images_of_a_class_that_was_not_learnt_count_as_wrong(tmp_path: Path) -> None:
    write_bright(tmp_path / "train_images", 30, 1)
    write_bright(tmp_path / "val_images", 12, 2)
    (tmp_path / "val_images" / "class_0").rename(tmp_path / "val_images" / "another")
    small = {"runner": InlineRunner()}
    convert(tmp_path / "train_images", tmp_path / "train", **small)
    convert(tmp_path / "val_images", tmp_path / "val", tokenizer=str(tmp_path / "train"), **small)
    train, val = (open_dataset(str(tmp_path / part)) for part in ("train", "val"))
    right_N = linear_probe(train, val)
    assert right_N.shape == (12,) and right_N.sum() == 6


def test_features_of_a_grid_are_means_of_its_parts() -> None:
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    found = _features(x, None, ())
    assert found.shape == (2, 3 * (1 + 4 + 16))
    assert torch.equal(found[:, :3], x.mean(dim=(2, 3)))
    assert torch.equal(found[:, 3 : 3 + 12].reshape(2, 3, 2, 2)[:, :, 1, 0], x[:, :, 2:, :2].mean(dim=(2, 3)))
    assert _features(torch.zeros(2, 700, 8, 8), None, ()).shape == (2, 700), "a wide embedding has fewer parts"
    assert _features(torch.zeros(2, 5000, 8, 8), None, ()).shape == (2, 5000), "but the whole image always"
    assert _features(torch.zeros(2, 3, 1, 5), None, ()).shape == (2, 3), "no more parts than sites"


def test_padding_is_in_no_mean() -> None:
    x, mask = torch.full((2, 4, 3), 7.0), torch.tensor([[True, True, False, False], [False] * 4])
    x[0, 2:] = 1000.0
    assert torch.equal(_features(x, mask, ()), torch.tensor([[7.0] * 3, [0.0] * 3]))
    scales = _features(torch.cat([torch.ones(1, 1, 2), torch.full((1, 4, 2), 3.0)], dim=1), None, ((1, 1), (2, 2)))
    assert scales.tolist() == [[1.0, 1.0, 3.0, 3.0]]
