"""Label maps through the reader: every order, parts and mixes of datasets, processes that share windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline.shards.test_dataset import build
from tests.pipeline.shards.test_masks import masked_dataset
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.cache import copies_folder
from tokenshards.stem_adaptors.data.label_maps import map_classes, map_format
from tokenshards.stem_adaptors.data.loader import TokenLoader, TrainingData
from tokenshards.stem_adaptors.data.mixing import mix
from tokenshards.stem_adaptors.data.selection import select

SIZE = 32
ORDERS = ("global", "windowed", "sequential")


def read(data: TrainingData, cache: Path, order: str = "global", world_size: int = 1, rank: int = 0, maps: bool = True) -> list[Batch]:
    config = LoaderConfig(batch_size=6, order=order, end="pad", window_shards=2, cache_dir=str(cache))
    loader = TokenLoader(data, config, rank=rank, world_size=world_size, label_maps=maps)
    found = list(loader.epoch(1))
    loader.close()
    return found


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("order", ORDERS)
def test_each_row_comes_with_its_map(order: str, dtype: str, tmp_path: Path) -> None:
    masks = masked_dataset(tmp_path / "data", (7, 4, 6), MaskFormat.of_size(SIZE, dtype), without=(2,))
    dataset = open_dataset(str(tmp_path / "data"))
    for _ in range(2):  # decoded, and then mapped
        batches = read(dataset, tmp_path / "cache", order)
        assert sum(int(batch.weights_B.sum()) for batch in batches) == 17
        for batch in batches:
            assert batch.maps_BHW is not None and batch.maps_BHW.dtype == (torch.uint8 if dtype == "uint8" else torch.int32)
            np.testing.assert_array_equal(batch.maps_BHW.numpy(), masks[batch.rows_B.numpy()])
            assert batch[2:4].maps_BHW is not None and batch.to("cpu").maps_BHW is not None
    assert all(batch.maps_BHW is None for batch in read(dataset, tmp_path / "cache", order, maps=False))


def test_copies_with_and_without_maps_stand_side_by_side(tmp_path: Path) -> None:
    masked_dataset(tmp_path / "data", (7, 4), MaskFormat.of_size(SIZE, "uint8"))
    dataset = open_dataset(str(tmp_path / "data"))
    for maps in (True, False, True, False):  # the second reading waits for the seal of the first
        read(dataset, tmp_path / "cache", maps=maps)
    names = {path.name.split("-")[0] for path in copies_folder(dataset, str(tmp_path / "cache")).iterdir()}
    assert {"decoded", "decoded.json", "with_maps", "with_maps.json"} <= names
    with pytest.raises(ConfigError, match=r"cache_gb is 1e-05; the order `global` needs 1.15e-05 GB"):
        TokenLoader(dataset, LoaderConfig(cache_gb=1e-5, cache_dir=str(tmp_path / "small"), batch_size=2), label_maps=True)
    TokenLoader(dataset, LoaderConfig(cache_gb=1e-5, cache_dir=str(tmp_path / "small"), batch_size=2)).close()


@pytest.mark.parametrize("order", ["windowed", "sequential"])
def test_ranks_share_windows_of_maps(order: str, tmp_path: Path) -> None:
    masks = masked_dataset(tmp_path / "data", (7, 4, 6), MaskFormat.of_size(SIZE, "uint8"))
    dataset = open_dataset(str(tmp_path / "data"))
    rows = []
    for rank in range(2):
        for batch in read(dataset, tmp_path / "cache", order, world_size=2, rank=rank):
            assert batch.maps_BHW is not None
            np.testing.assert_array_equal(batch.maps_BHW.numpy(), masks[batch.rows_B.numpy()])
            rows += batch.rows_B[batch.weights_B > 0].tolist()
    assert sorted(rows) == list(range(17))
    assert (copies_folder(dataset, str(tmp_path / "cache")) / "windows_with_maps").is_dir()


def test_parts_and_mixes_have_the_maps_of_their_datasets(tmp_path: Path) -> None:
    mask = MaskFormat.of_size(SIZE, "uint8")
    first = masked_dataset(tmp_path / "a", (7, 4), mask)
    second = masked_dataset(tmp_path / "b", (5,), mask)
    a, b = (open_dataset(str(tmp_path / name)) for name in "ab")
    part = select(a, rows=[9, 1, 2, 6])
    for batch in read(part, tmp_path / "cache"):
        assert batch.maps_BHW is not None
        np.testing.assert_array_equal(batch.maps_BHW.numpy(), first[batch.rows_B.numpy()])
    both = mix([(part, 1.0), (b, 1.0)])
    assert map_format(both) == mask and map_classes(both) == max(a.mask_classes, b.mask_classes)
    known = {one.tobytes() for one in (*first[[1, 2, 6, 9]], *second)}
    found = {one.numpy().tobytes() for batch in read(both, tmp_path / "cache") for one in batch.maps_BHW}  # type: ignore[union-attr]
    assert found <= known and found & {one.tobytes() for one in second} and found & {one.tobytes() for one in first}


def test_data_without_masks_and_masks_of_two_kinds_are_told(tmp_path: Path) -> None:
    masked_dataset(tmp_path / "a", (3,), MaskFormat.of_size(SIZE, "uint8"))
    masked_dataset(tmp_path / "b", (3,), MaskFormat.of_size(SIZE, "uint16"))
    masked_dataset(tmp_path / "none", (3,), MaskFormat.of_size(SIZE, "uint8"), without=(0, 1, 2))
    build(tmp_path / "plain", [4])
    a, b, none, plain = (open_dataset(str(tmp_path / name)) for name in ("a", "b", "none", "plain"))
    with pytest.raises(ConfigError, match=r"plain has no masks; expected the class of each pixel\. Tokenize the images with --masks"):
        TokenLoader(plain, batch_size=2, label_maps=True, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"b has masks of .*uint16.*; .*a of .*uint8"):
        map_format(mix([(a, 1.0), (b, 1.0)]))
    with pytest.raises(ConfigError, match="every pixel of every mask is to be ignored"):
        map_classes(none)
