"""The measured images that all validation sets have: each set is made by itself, so that its order is its own.

Shapes: n measured images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.data.selection import Ints, labels_of

__all__ = ["labelled_ids", "sample_ids", "shared_places"]


def labelled_ids(dataset: TokenDataset) -> list[str]:
    """Return the sample ids of labelled images in stored order: those that a training's `right` is about."""
    ids, labels_N = sample_ids(dataset), labels_of(dataset)
    return [ids[row] for row in range(0, len(ids), dataset.views) if labels_N[row] >= 0]


def sample_ids(dataset: TokenDataset) -> list[str]:
    """Return the sample id of each row."""
    ids: list[str] = []
    for entry in dataset.shards:
        ids += dataset.open_shard(entry).read_columns(("sample_id",)).column("sample_id").to_pylist()
    return ids


def shared_places(ids: Mapping[str, Sequence[str]]) -> dict[str, Ints]:
    """Return where each set has the images of all sets, in the order of the first set. Raises ConfigError where they share none."""
    first, *others = ids.values()
    shared = set(first).intersection(*others)
    if not shared:
        other = next(one for one in others if not shared.intersection(one))
        raise ConfigError(
            f"VAL and --val-images have no image of one name: VAL has {shorten(first[0])}, --val-images {shorten(other[0])}; expected the "
            "same images. Give the source that VAL was made from as --val-images"
        )
    order = [name for name in first if name in shared]
    return {place: _places(names, order) for place, names in ids.items()}


def _places(names: Sequence[str], wanted: Sequence[str]) -> Ints:
    place = {name: at for at, name in enumerate(names)}
    return np.array([place[name] for name in wanted], np.int64)
