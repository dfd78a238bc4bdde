"""One sample after the other, for webdataset's pipelines and for torch's DataLoader.

Shapes: L sites, Q ids per site, B rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from tokenshards.pipeline.canonical import keyed_hash64
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.manifest import ShardEntry
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.data.class_names import own_class_map
from tokenshards.stem_adaptors.data.given import require_data
from tokenshards.stem_adaptors.ranks import found_ranks

__all__ = ["TokenStream"]


class TokenStream(IterableDataset[dict[str, Any]]):
    """The samples of a dataset as dicts, split by rank and by worker process.

    >>> stream = tokenshards.TokenStream(tokenshards.open_dataset("photos.tokens"))
    >>> sample = next(iter(stream))
    >>> sorted(sample), sample["input_ids"].shape, sample["input_ids"].dtype
    (['__key__', 'input_ids', 'labels'], torch.Size([256, 2]), torch.int64)
    >>> len({sample["__key__"] for sample in stream})
    72

    `input_ids` is an int64 tensor [L, Q], or [L] where a site has one id; `labels` an int64 class index, -1 without a label; `__key__` the
    sample id. Grids and videos of varying size have a `shape`, too. Each epoch orders the shards anew, by seed and epoch, and
    every rank and worker reads an equal stretch of that line (they differ by at most one row). The order within a shard is as stored:
    shuffle behind the stream. Rows of several views of an image are samples of their own.
    """

    def __init__(
        self, dataset: TokenDataset, *, classes: Sequence[int | str] | None = None, shuffle_shards: bool = True, seed: int = 0
    ) -> None:
        """`classes`: the names that labels index, by default the dataset's own. Samples of other classes get the label -1, after a warning.

        Raises ConfigError where the dataset has none of `classes`.
        """
        require_data(dataset, whole=True)
        self.dataset = dataset
        self._table = None if classes is None else own_class_map(dataset.classes, classes, dataset.store.url, stacklevel=2)
        self.classes: tuple[int | str, ...] = dataset.classes if classes is None else tuple(classes)
        """Labels in the order of their class index."""
        self._shuffle, self._seed, self._epoch = shuffle_shards, seed, 0

    def __repr__(self) -> str:
        return short_repr(self, dataset=self.dataset, shuffle_shards=self._shuffle, seed=self._seed)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with this epoch. Without a call each iteration in one process is an epoch; worker processes need one."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rank, world_size = found_ranks()
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        part, parts = rank * workers + number, world_size * workers
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._rows(epoch, len(self.dataset) * part // parts, len(self.dataset) * (part + 1) // parts)

    def _rows(self, epoch: int, begin: int, end: int) -> Iterator[dict[str, Any]]:
        """Yield the rows from `begin` to `end` of the line of shards of an epoch."""
        start = 0
        for entry in self._line(epoch):
            stop = start + entry.rows
            if begin < stop and start < end:
                yield from self._of_shard(entry, max(0, begin - start), min(entry.rows, end - start))
            start = stop

    def _line(self, epoch: int) -> list[ShardEntry]:
        shards = list(self.dataset.shards)
        return sorted(shards, key=lambda entry: keyed_hash64(f"stream {self._seed} {epoch}", str(entry.path))) if self._shuffle else shards

    def _of_shard(self, entry: ShardEntry, begin: int, end: int) -> Iterator[dict[str, Any]]:
        reader, start = self.dataset.open_shard(entry), 0
        for group in range(reader.num_row_groups):
            stop = start + reader.row_group_rows(group)
            if begin < stop and start < end:
                yield from self._of_group(reader, group, range(max(0, begin - start), min(stop, end) - start))
            start = stop

    def _of_group(self, reader: ShardReader, group: int, rows: range) -> Iterator[dict[str, Any]]:
        data = reader.read_row_group(group, ("sample_id", "label"))
        labels_B = self.dataset._class_indices(data.table.column("label"))
        if self._table is not None:
            labels_B = self._table[labels_B]
        keys = data.table.column("sample_id").to_pylist()
        tokens = data.tokens
        lengths_B = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD.prod(axis=1)
        for row in rows:
            sites = None if lengths_B is None else int(lengths_B[row])
            ids_LQ = torch.from_numpy(tokens.ids_BLQ[row, :sites].astype(np.int64))
            sample = {
                "__key__": keys[row],
                "input_ids": ids_LQ[:, 0] if ids_LQ.shape[1] == 1 else ids_LQ,
                "labels": torch.tensor(int(labels_B[row])),
            }
            if tokens.shapes_BD is not None:
                sample["shape"] = torch.from_numpy(tokens.shapes_BD[row].astype(np.int64))
            yield sample
