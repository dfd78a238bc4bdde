"""So many images of a dataset: nested, seeded, an equal share of each class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.shards.test_dataset import build
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.stem_adaptors.data.selection import labels_of, select
from tokenshards.stem_adaptors.data.subsets import CHOICES, Subset, chosen_order, subset_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """100 rows, some without a label."""
    root = tmp_path_factory.mktemp("subsets")
    build(root, [30, 61, 9])
    return open_dataset(str(root))


@pytest.fixture(scope="module")
def labels(dataset: TokenDataset) -> np.ndarray:
    return labels_of(dataset)


def rows_of(dataset: TokenDataset, choice: str, images: int, seed: int = 4) -> list[int]:
    return subset_of(dataset, Subset(choice=choice, images=images), seed).rows_n.tolist()


@pytest.mark.parametrize("choice", CHOICES)
def test_fewer_images_are_part_of_more_and_a_seed_draws_its_own(dataset: TokenDataset, labels: np.ndarray, choice: str) -> None:
    labelled = int((labels >= 0).sum())
    assert 0 < labelled < len(dataset)
    smaller: set[int] = set()
    for images in (1, 2, 3, 10, 11, labelled - 1, labelled):
        rows = rows_of(dataset, choice, images)
        assert len(rows) == images and rows == sorted(set(rows)) and smaller <= set(rows)
        smaller = set(rows)
    assert smaller == set(np.flatnonzero(labels >= 0).tolist()), "all that have a label"
    assert rows_of(dataset, choice, 10, seed=5) != rows_of(dataset, choice, 10)


def test_stratified_keeps_what_select_keeps_of_a_fraction(dataset: TokenDataset, labels: np.ndarray) -> None:
    for fraction in (0.1, 0.3, 0.5, 0.77):
        kept = [row for row in select(dataset, fraction=fraction, seed=4).rows_n.tolist() if labels[row] >= 0]
        assert rows_of(dataset, "stratified", len(kept)) == kept


def test_an_image_is_chosen_whatever_the_shards(dataset: TokenDataset, tmp_path: Path) -> None:
    build(tmp_path, [50, 50])
    other = open_dataset(str(tmp_path))
    for choice in CHOICES:
        assert rows_of(other, choice, 20) == rows_of(dataset, choice, 20)


def test_random_takes_classes_as_they_come(dataset: TokenDataset, labels: np.ndarray) -> None:
    counts = {tuple(np.bincount(labels[rows_of(dataset, "random", 9, seed)], minlength=3)) for seed in range(8)}
    assert len(counts) > 1
    assert {tuple(np.bincount(labels[rows_of(dataset, "stratified", 9, seed)], minlength=3)) for seed in range(8)}.isdisjoint({(9, 0, 0)})


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_each_class_has_its_share_of_any_number_of_images(labels: list[int], seed: int) -> None:
    labels_n = np.array(labels)
    hashes_n = np.random.default_rng(seed).integers(0, 1 << 62, len(labels)).astype(np.uint64)
    order = chosen_order("stratified", labels_n, hashes_n)
    assert sorted(order) == list(range(len(labels)))
    classes, sizes = np.unique(labels_n, return_counts=True)
    assert set(labels_n[order[: len(classes)]]) == set(classes), "one of each class comes first"
    for images in range(len(classes), len(labels) + 1):
        taken = order[:images]
        for label, size in zip(classes, sizes, strict=True):
            count = int((labels_n[taken] == label).sum())
            assert count == 1 or abs(count - size * images / len(labels)) <= len(classes), "near its share"
            own = np.flatnonzero(labels_n == label)
            assert set(taken[labels_n[taken] == label]) == set(own[np.argsort(hashes_n[own])][:count]), "the smallest hashes of the class"
    assert chosen_order("random", labels_n, hashes_n).tolist() == sorted(range(len(labels)), key=lambda place: hashes_n[place])


def test_what_cannot_be_is_named(dataset: TokenDataset) -> None:
    with pytest.raises(ConfigError, match=r"labelled images; expected at least 101"):
        rows_of(dataset, "random", 101)
    for changes, message in (({"choice": "first"}, "choice is 'first'; expected stratified or random"), ({"images": 0}, "images is 0")):
        with pytest.raises(ConfigError, match=message):
            replace(Subset(choice="random", images=1), **changes)  # type: ignore[arg-type]
