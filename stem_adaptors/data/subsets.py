"""So many images of a dataset: an equal share of each class, or any. The subset of fewer images is part of that of more.

Shapes: N rows of the dataset, n labelled images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import ConfigError, require
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.data.selection import Ints, Selection, labels_and_hashes

__all__ = ["CHOICES", "Subset", "chosen_order", "subset_of"]

CHOICES = ("stratified", "random")


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """How many labelled images, and how they are chosen. JSON can hold all fields."""

    choice: str
    images: int

    def __post_init__(self) -> None:
        require(self.choice in CHOICES, "choice", self.choice, " or ".join(CHOICES))
        require(self.images >= 1, "images", self.images, "at least 1")


def subset_of(dataset: TokenDataset, subset: Subset, seed: int) -> Selection:
    """Return the labelled images that a hash of seed and sample id puts first. Raises ConfigError where the dataset has too few.

    Where `select` keeps as many images with its `fraction` and this seed, `stratified` keeps the same ones.
    """
    labels_N, hashes_N = labels_and_hashes(dataset, seed, hashes=True)
    rows_n = np.arange(0, len(dataset), dataset.views, dtype=np.int64)
    rows_n = rows_n[labels_N[rows_n] >= 0]
    if subset.images > len(rows_n):
        raise ConfigError(f"{dataset.store.url} has {len(rows_n):,} labelled images; expected at least {subset.images:,}. Choose fewer")
    order_n = chosen_order(subset.choice, labels_N[rows_n], hashes_N[rows_n])
    return Selection(dataset=dataset, rows_n=np.sort(rows_n[order_n[: subset.images]]), classes=dataset.classes)


def chosen_order(choice: str, labels_n: Ints, hashes_n: npt.NDArray[np.uint64]) -> Ints:
    """Return the places of all images in the order in which they are taken: `stratified` takes one of each class first."""
    if choice == "random":
        return np.argsort(hashes_n, kind="stable")
    by_class = np.lexsort((hashes_n, labels_n))
    _, starts, sizes = np.unique(labels_n[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(by_class)) - np.repeat(starts, sizes)
    share = (rank + 0.5) / np.repeat(sizes, sizes)  # image number r of a class of s comes when round(share * s) reaches r + 1
    order: Ints = by_class[np.lexsort((hashes_n[by_class], share, rank > 0))]
    return order
