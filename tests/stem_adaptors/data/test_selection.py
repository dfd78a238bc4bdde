"""Subsets by class, fraction and row, against the labels of the dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.shards.test_dataset import build
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.stem_adaptors.data.selection import select


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    root = tmp_path_factory.mktemp("selection")
    build(root, [30, None, 1, 60, 9])
    return open_dataset(str(root))


@pytest.fixture(scope="module")
def labels(dataset: TokenDataset) -> np.ndarray:
    return np.concatenate([batch.labels_B for batch in dataset.batches(50)])


def test_classes_choose_rows_and_keep_the_table(dataset: TokenDataset, labels: np.ndarray) -> None:
    chosen = select(dataset, classes=["class_2", "class_0"])
    np.testing.assert_array_equal(chosen.rows_n, np.flatnonzero(np.isin(labels, [0, 2])))
    assert chosen.classes == dataset.classes and chosen.spec is dataset.spec
    assert chosen.counts_S.tolist() == [int(np.isin(part, [0, 2]).sum()) for part in np.split(labels, [30, 31, 91])]
    assert select(dataset, classes=["class_2", "class_0"], remap=True).classes == ("class_0", "class_2")


def test_fractions_are_exact_per_class_nested_and_seeded(dataset: TokenDataset, labels: np.ndarray) -> None:
    smaller: set[int] = set()
    for fraction in (0.001, 0.1, 0.3, 0.31, 0.5, 0.9, 1.0):
        rows = select(dataset, fraction=fraction, seed=4).rows_n
        assert (np.diff(rows) > 0).all() and smaller <= set(rows.tolist())
        smaller = set(rows.tolist())
        for label in (-1, 0, 1, 2):
            size = int((labels == label).sum())
            assert (labels[rows] == label).sum() == max(1, int(fraction * size + 0.5))
    assert set(select(dataset, fraction=0.5, seed=5).rows_n.tolist()) != set(select(dataset, fraction=0.5, seed=4).rows_n.tolist())


def test_a_fraction_is_of_samples_whatever_the_shards(dataset: TokenDataset, tmp_path: Path) -> None:
    build(tmp_path, [50, 50])
    other = open_dataset(str(tmp_path))
    assert select(dataset, fraction=0.4).rows_n.tolist() == select(other, fraction=0.4).rows_n.tolist()


def test_rows_and_selections_combine(dataset: TokenDataset, labels: np.ndarray) -> None:
    some = select(dataset, rows=[40, 3, 99, 31])
    assert some.rows_n.tolist() == [3, 31, 40, 99] and some.counts_S.tolist() == [1, 0, 2, 1] and len(some) == 4
    ones = select(some, classes=["class_1"])
    assert ones.rows_n.tolist() == [row for row in (3, 31, 40, 99) if labels[row] == 1]
    renumbered = select(select(dataset, classes=["class_2"], remap=True), fraction=0.5)
    assert renumbered.classes == ("class_2",) and set(labels[renumbered.rows_n]) == {2}
    with pytest.raises(ConfigError, match="class_0"):
        select(renumbered, classes=["class_0"])


def test_digests_tell_selections_apart(dataset: TokenDataset) -> None:
    parts = [
        select(dataset),
        select(dataset, fraction=0.5),
        select(dataset, fraction=0.5, seed=1),
        select(dataset, classes=["class_1"]),
        select(dataset, classes=["class_1"], remap=True),
    ]
    assert len({part.digest for part in parts}) == len(parts)
    assert select(dataset, fraction=0.5).digest == parts[1].digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["class_1", "class_9"]}, "class_9"),
        ({"classes": []}, "empty"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"rows": [1, 1]}, "each row once"),
        ({"rows": [5, 100]}, "100"),
        ({"rows": [-1]}, "-1"),
    ],
)
def test_wrong_choices_are_named(dataset: TokenDataset, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(dataset, **options)  # type: ignore[arg-type]
