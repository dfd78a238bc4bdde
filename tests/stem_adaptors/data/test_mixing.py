"""Mixes: exact proportions at every place, and each dataset walked through before it repeats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tests.pipeline.shards.test_dataset import build
from tokenshards.pipeline.errors import ConfigError, OtherTokenizerError
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.pixels.pixel_values import PixelValues
from tokenshards.pipeline.tokenizers.pixels.small_file import SmallFile
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.mixing import Mix, mix
from tokenshards.stem_adaptors.data.selection import select


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    root = tmp_path_factory.mktemp("mixing")
    build(root, [20, 9, 31])
    return open_dataset(str(root))


@given(weights=st.lists(st.integers(1, 40), min_size=1, max_size=6), start=st.integers(0, 500))
@settings(max_examples=60, deadline=None)
def test_every_prefix_is_within_one_of_its_share(dataset: TokenDataset, weights: list[int], start: int) -> None:
    whole = Mix([(dataset, weight) for weight in weights])
    total = sum(whole.weights)
    part_B, draw_B = whole.schedule(np.arange(3 * total))
    seen = np.arange(1, 3 * total + 1)
    for part, weight in enumerate(weights):
        counts = np.cumsum(part_B == part)
        assert np.abs(counts - seen * weight / sum(weights)).max() < 1
        np.testing.assert_array_equal(counts[total - 1 :: total], whole.weights[part] * np.arange(1, 4))
        np.testing.assert_array_equal(draw_B[part_B == part], np.arange(counts[-1]))
    # Stateless: any piece alone equals that piece of the whole.
    begin = start % (2 * total)
    for found, expected in zip(whole.schedule(np.arange(begin, min(begin + 7, 3 * total))), (part_B, draw_B), strict=True):
        np.testing.assert_array_equal(found, expected[begin : begin + 7])


def test_weights_are_taken_as_written(dataset: TokenDataset) -> None:
    assert mix([(dataset, 0.1), (dataset, 0.3)]).weights == (1, 3)
    assert mix([(dataset, 10), (dataset, 2.5), (dataset, np.float64(5.0))]).weights == (4, 1, 2)
    for weights in ([1, 0], [1, -1], [1, float("nan")], [1, float("inf")]):
        with pytest.raises(ConfigError, match="expected positive numbers"):
            mix([(dataset, weight) for weight in weights])
    with pytest.raises(ConfigError, match="Round them"):
        mix([(dataset, 0.123456789), (dataset, 1)])
    with pytest.raises(ConfigError, match="0 datasets"):
        mix([])


@pytest.mark.parametrize("order", ["global", "windowed", "sequential"])
@pytest.mark.parametrize("end", ["drop", "pad"])
def test_no_sample_comes_again_before_all_of_its_dataset_have_come(dataset: TokenDataset, order: str, end: str, tmp_path: Path) -> None:
    parts = [select(dataset, rows=range(7)), select(dataset, rows=range(10, 60)), select(dataset, rows=range(7, 10))]
    both = mix([(parts[0], 3), (parts[1], 2), (parts[2], 1)])
    config = LoaderConfig(order=order, end=end, batch_size=8, window_shards=1, cache_dir=str(tmp_path))
    loader = TokenLoader(both, config)
    assert len(both) == 60 and len(loader) == (7 if end == "drop" else 8)
    drawn: list[list[int]] = [[], [], []]
    for _ in range(4):
        count = 0
        for batch in loader:
            real = batch.rows_B[batch.weights_B > 0].tolist()
            count += len(real)
            for row in real:
                drawn[0 if row < 7 else 2 if row < 10 else 1].append(row)
        assert count == (56 if end == "drop" else 60)
    for part, rows in zip(parts, drawn, strict=True):
        size = len(part)
        if end == "drop" and size == 50:
            continue  # its draws fall among the dropped positions too
        for start in range(0, len(rows) - size + 1, size):
            if end == "pad":
                assert sorted(rows[start : start + size]) == part.rows_n.tolist()
    if end == "pad":
        assert [len(rows) for rows in drawn] == [120, 80, 40]


def test_classes_are_matched_by_name(dataset: TokenDataset, tmp_path: Path) -> None:
    first = select(dataset, classes=["class_2"], remap=True)
    both = mix([(first, 1), (dataset, 1)])
    assert both.classes == ("class_2", "class_0", "class_1") and both.dataset is dataset
    labels_N = np.concatenate([batch.labels_B for batch in dataset.batches(64)])
    expected = np.array([1, 2, 0, -1])[labels_N]
    for batch in TokenLoader(both, LoaderConfig(batch_size=10, cache_dir=str(tmp_path))):
        np.testing.assert_array_equal(batch.labels_B.numpy(), expected[batch.rows_B.numpy()])


def test_two_tokenizers_are_never_mixed(dataset: TokenDataset, tmp_path: Path) -> None:
    build(tmp_path, [5], "grid_residual")
    other = open_dataset(str(tmp_path))
    with pytest.raises(OtherTokenizerError, match="dataset 1 of the mix") as caught:
        mix([(dataset, 1), (other, 1)])
    assert other.spec.fingerprint[:12] in str(caught.value)


def test_pixels_of_whole_images_and_of_small_files_are_mixed(tmp_path: Path) -> None:
    """Whole pixels are those of the images, the others have been through the file; pixels of another size are refused."""
    write_images(tmp_path / "src", 12, side=16)
    file = SmallFile(format="jpeg", side=4, quality=20)
    made = {}
    for name, side, stored in (("whole", 8, None), ("small", 8, file), ("other", 4, None)):
        save_tokenizer(PixelValues(Preprocess(size=side, decoder=DECODER), stored), Store(str(tmp_path / f"{name}.tok")))
        convert(tmp_path / "src", tmp_path / name, tokenizer=str(tmp_path / f"{name}.tok"), runner=InlineRunner())
        made[name] = open_dataset(str(tmp_path / name))
    whole, small = made["whole"], made["small"]
    both = mix([(whole, 1), (small, 2)])
    assert both.spec is whole.spec and both.weights == (1, 2)
    ids_of = [{ids.tobytes() for ids in made[name][:].ids_BLQ} for name in ("whole", "small")]
    assert ids_of[0].isdisjoint(ids_of[1])
    (batch,) = TokenLoader(both, LoaderConfig(batch_size=24, cache_dir=str(tmp_path / "cache")))
    assert [sum(ids.tobytes() in own for ids in batch.ids_BLQ.numpy()) for own in ids_of] == [8, 16]
    with pytest.raises(OtherTokenizerError, match="dataset 1 of the mix"):
        mix([(whole, 1), (made["other"], 1)])
