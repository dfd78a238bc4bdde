"""Parts of a dataset: by class, by fraction, by row.

A sample is an image. Where an image has several rows, its views, the row of view 0 stands for all of them.

Shapes: N rows of the dataset, n rows selected, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.canonical import canonical_json, keyed_hashes64, sha256_hex
from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.spec import TokenizerSpec

__all__ = ["Ints", "Selection", "labels_and_hashes", "labels_of", "sample_count", "select"]

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Some rows of a dataset, with the class table that their labels index."""

    dataset: TokenDataset
    rows_n: Ints
    """Dataset rows of view 0 in shard order, each once."""
    classes: tuple[int | str, ...]
    """The dataset's own table, so that heads stay comparable, unless `remap` renumbered the classes."""
    digest: str = field(init=False)
    """sha256 over rows and class table."""

    def __post_init__(self) -> None:
        table = canonical_json(list(self.classes))
        object.__setattr__(self, "digest", sha256_hex(table + self.rows_n.astype("<i8").tobytes()))

    def __len__(self) -> int:
        return len(self.rows_n)

    def __repr__(self) -> str:
        return f"Selection({len(self)} of the rows of {self.dataset!r}, classes={len(self.classes)})"

    @property
    def spec(self) -> TokenizerSpec:
        """What the ids mean."""
        return self.dataset.spec

    @property
    def counts_S(self) -> Ints:
        """Rows selected from each shard."""
        ends = np.cumsum([entry.rows for entry in self.dataset.shards])
        return np.diff(np.searchsorted(self.rows_n, ends), prepend=0)


def sample_count(data: Sized) -> int:
    """Return the samples of an epoch of a dataset, selection or mix: images, whatever their number of views."""
    return len(data) // data.views if isinstance(data, TokenDataset) else len(data)


def select(
    data: TokenDataset | Selection,
    *,
    classes: Collection[int | str] | None = None,
    fraction: float = 1.0,
    rows: Sequence[int] | Ints | None = None,
    seed: int = 0,
    remap: bool = False,
) -> Selection:
    """Return the rows that meet every condition given.

    `classes` names labels. `rows` are dataset rows (of view 0) in any order. `fraction` keeps that share of each class, at least one sample
    of each, chosen by a hash of seed and sample id. A smaller fraction is therefore part of a larger one, for all shards and tokenizers.
    `remap` numbers the chosen classes anew from 0, in the order of the class table; without `remap` labels index the whole table.
    Raises ConfigError for classes or rows that the data lacks, and where nothing is left.
    """
    if not 0.0 < fraction <= 1.0:
        raise ConfigError(f"fraction is {fraction}; expected more than 0, at most 1")
    dataset = data.dataset if isinstance(data, Selection) else data
    table, wanted = data.classes, set(classes or ())
    kept = data.rows_n if isinstance(data, Selection) else np.arange(0, len(data), data.views, dtype=np.int64)
    if rows is not None:
        kept = _chosen_rows(kept, rows)
    if classes is not None or fraction < 1.0:
        labels_N, hashes_N = labels_and_hashes(dataset, seed, hashes=fraction < 1.0)
        if classes is not None:
            unknown = sorted(wanted - set(table), key=str)
            if unknown:
                raise ConfigError(f"classes has {shorten(unknown)}; the class table has {shorten(list(table))}")
            indices = [index for index, name in enumerate(dataset.classes) if name in wanted]
            kept = kept[np.isin(labels_N[kept], indices)]
        if fraction < 1.0:
            kept = np.sort(kept[_share_of_each(labels_N[kept], hashes_N[kept], fraction)])
    if not kept.size:
        raise ConfigError(f"the selection is empty: classes={shorten(classes)}, fraction={fraction}, of {data!r}. Choose more")
    if remap and classes is not None:
        table = tuple(name for name in table if name in wanted)
    return Selection(dataset=dataset, rows_n=kept, classes=table)


def labels_of(dataset: TokenDataset) -> Ints:
    """Return the class index of every row, -1 where it has no label. Reads the labels of all shards."""
    return labels_and_hashes(dataset, 0, hashes=False)[0]


def _chosen_rows(kept: Ints, rows: Sequence[int] | Ints) -> Ints:
    chosen = np.unique(np.asarray(rows, np.int64))
    if len(chosen) != len(rows):
        raise ConfigError(f"rows has {len(rows)} entries, only {len(chosen)} of them different; expected each row once")
    absent = chosen[~np.isin(chosen, kept)]
    if absent.size:
        raise ConfigError(
            f"rows has {shorten(absent[:5].tolist())}; expected rows of the data, of view 0 where it has several ({len(kept)} rows)"
        )
    return chosen


def labels_and_hashes(dataset: TokenDataset, seed: int, *, hashes: bool) -> tuple[Ints, npt.NDArray[np.uint64]]:
    """Read the class indices of all rows and, if asked for, keyed hashes of their sample ids. Reads no token ids."""
    labels: list[Ints] = [np.zeros(0, np.int64)]
    digests: list[tuple[int, ...]] = []
    for entry in dataset.shards:
        table = dataset.open_shard(entry).read_columns(("label", "sample_id") if hashes else ("label",))
        labels.append(dataset._class_indices(table.column("label")))
        if hashes:
            digests.append(keyed_hashes64(f"subset {seed}", table.column("sample_id").to_pylist()))
    flat: npt.NDArray[Any] = np.array([digest for shard in digests for digest in shard], np.uint64)
    return np.concatenate(labels), flat


def _share_of_each(labels_n: Ints, hashes_n: npt.NDArray[np.uint64], fraction: float) -> Ints:
    """Return the places of the smallest hashes of each class: round(fraction * size) places, at least 1."""
    order = np.lexsort((hashes_n, labels_n))
    _, starts, sizes = np.unique(labels_n[order], return_index=True, return_counts=True)
    keep = np.maximum(np.floor(fraction * sizes + 0.5), 1)
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    places: Ints = order[rank < np.repeat(keep, sizes)]
    return places
