"""Makes the batch for given positions of an epoch: rows of one or several datasets, with labels of one class table, padded.

Shapes: B samples of this rank, L sites, Q ids per site, N samples of an epoch, C classes, D dimensions of a ragged layout's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.class_names import own_class_map
from tokenshards.stem_adaptors.data.label_maps import map_format
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.selection import Selection, sample_count
from tokenshards.stem_adaptors.data.sources import Rows, join_rows, open_source

__all__ = ["BatchReader", "TrainingData", "class_tables", "parts_of"]

Ints: TypeAlias = npt.NDArray[np.int64]
TrainingData: TypeAlias = TokenDataset | Selection | Mix
"""Data to train on. All three types have `spec` and `classes` and work with `sample_count`."""


class BatchReader:
    """Makes the batch for given positions of an epoch. For one thread at a time."""

    def __init__(
        self,
        data: TrainingData,
        config: LoaderConfig,
        world_size: int = 1,
        *,
        workers: int = 1,
        tables: Sequence[Ints | None] | None = None,
        label_maps: bool = False,
    ) -> None:
        """Open every dataset. `workers`: processes that read for one rank; `tables`: a result of `class_tables`; `label_maps`: read them.

        Raises what `TokenLoader` raises.
        """
        self._mix = data if isinstance(data, Mix) else None
        parts = parts_of(data)
        maps = map_format(data) if label_maps else None
        self._sources = [open_source(part, config, world_size, shared=world_size * workers > 1, maps=maps) for part in parts]
        self._tables = [_class_map(part, data.classes) for part in parts] if tables is None else tables
        self._size, self._seed = sample_count(data), config.seed
        self._pad_id = max(data.spec.vocabulary)

    def read(self, epoch: int, positions_B: Ints) -> Batch:
        """Return the samples at some positions. Positions from N on repeat the first positions with weight 0."""
        rows = self._take(epoch * self._size + positions_B % self._size)
        tokens, lengths_B = self._padded(rows.tokens)
        return Batch(
            ids_BLQ=torch.from_numpy(tokens.ids_BLQ.transpose(0, 2, 1)).transpose(1, 2),
            labels_B=torch.from_numpy(rows.labels_B),
            weights_B=torch.from_numpy((positions_B < self._size).astype(np.float32)),
            positions_B=torch.from_numpy(positions_B),
            rows_B=torch.from_numpy(rows.rows_B),
            epoch=epoch,
            seed=self._seed,
            lengths_B=None if lengths_B is None else torch.from_numpy(lengths_B),
            shapes_BD=None if tokens.shapes_BD is None else torch.from_numpy(tokens.shapes_BD.astype(np.int64)),
            maps_BHW=None if rows.maps_BHW is None else _as_tensor(rows.maps_BHW),
        )

    def close(self) -> None:
        """Stop background work of all datasets."""
        for source in self._sources:
            source.close()

    def _take(self, draws_B: Ints) -> Rows:
        if self._mix is None:
            return self._labelled(0, self._sources[0].take(draws_B))
        part_B, own_draws_B = self._mix.schedule(draws_B)
        found = []
        for part in np.unique(part_B).tolist():
            places = np.flatnonzero(part_B == part)
            found.append((places, self._labelled(part, self._sources[part].take(own_draws_B[places]))))
        return join_rows(found, len(draws_B))

    def _labelled(self, part: int, rows: Rows) -> Rows:
        table = self._tables[part]
        return rows if table is None else replace(rows, labels_B=table[rows.labels_B])

    def _padded(self, tokens: TokenBatch) -> tuple[TokenBatch, Ints | None]:
        lengths = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD.prod(axis=1)
        if lengths is None:
            return tokens, None
        ids_BQL = tokens.ids_BLQ.transpose(0, 2, 1)
        # The vocabulary may fill the smallest dtype of the ids; torch has little support for uint64.
        dtype = np.promote_types(ids_BQL.dtype, np.min_scalar_type(self._pad_id))
        ids_BQL = ids_BQL.astype(np.int64 if dtype == np.uint64 else dtype)
        lengths_B = lengths.astype(np.int64)
        real_B1L = (np.arange(ids_BQL.shape[2]) < lengths_B[:, None])[:, None]
        np.copyto(ids_BQL, self._pad_id, where=~real_B1L, casting="unsafe")
        return TokenBatch(ids_BQL.transpose(0, 2, 1), tokens.lengths_B, tokens.shapes_BD), lengths_B


def class_tables(data: TrainingData, classes: Sequence[int | str], *, stacklevel: int = 2) -> list[Ints]:
    """Return, for each dataset, the index in `classes` of each of its class indices, by name. Raises and warns as `own_class_map` does."""
    found = []
    for part in parts_of(data):  # no comprehension, which is a frame of its own before Python 3.12
        dataset = part.dataset if isinstance(part, Selection) else part
        found.append(own_class_map(dataset.classes, classes, dataset.store.url, stacklevel=stacklevel + 1))
    return found


def parts_of(data: TrainingData) -> tuple[TokenDataset | Selection, ...]:
    """Return the datasets and selections of a mix, or the one that is given."""
    return data.parts if isinstance(data, Mix) else (data,)


def _as_tensor(maps_BHW: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(maps_BHW if maps_BHW.dtype == np.uint8 else maps_BHW.astype(np.int32))  # torch does little with uint16


def _class_map(part: TokenDataset | Selection, classes: tuple[int | str, ...]) -> Ints | None:
    """Return the index in `classes` of each class index of the dataset, then -1, the entry of samples without a label."""
    own = part.dataset.classes if isinstance(part, Selection) else part.classes
    if own == classes:
        return None
    index = {name: place for place, name in enumerate(classes)}
    return np.array([*(index.get(name, -1) for name in own), -1], np.int64)
