"""A batch of token rows as tensors: the one type that all parts of training exchange.

Shapes: B samples, L sites (the longest row of a ragged batch), Q ids per site, D dimensions of a ragged layout's shape, H x W pixels of
a label map.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.words import same_fields, short_repr

__all__ = ["Batch", "require_batch", "require_ids"]


@dataclass(frozen=True, slots=True, eq=False)  # its own __eq__: arrays have no truth value
class Batch:
    """Samples of one step on one rank."""

    ids_BLQ: Tensor
    """uint8, uint16 or uint32 as stored. In a ragged batch, sites past a row's end hold the pad id, one above the largest id."""
    labels_B: Tensor
    """int64 class indices, -1 where a sample has no label."""
    weights_B: Tensor
    """float32: 1, or 0 for the repeats that fill the last batch of a padded epoch."""
    positions_B: Tensor
    """int64 position in the epoch. Seed, epoch and position are the key of every random number of a sample."""
    rows_B: Tensor
    """int64 row of the dataset, in shard order."""
    epoch: int
    seed: int
    lengths_B: Tensor | None = None
    """int64 sites per row, for ragged layouts."""
    shapes_BD: Tensor | None = None
    """int64 grid per row, for grids and videos of varying size."""
    maps_BHW: Tensor | None = None
    """uint8 or int32 label maps, the class of each pixel; None unless the loader was asked for them."""

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other) if isinstance(other, Batch) else NotImplemented

    def __len__(self) -> int:
        return int(self.ids_BLQ.shape[0])

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return short_repr(self, **values, device=str(self.ids_BLQ.device))

    @property
    def mask_BL(self) -> Tensor | None:
        """True at real sites; None where all rows have the same length."""
        if self.lengths_B is None:
            return None
        sites = torch.arange(self.ids_BLQ.shape[1], device=self.lengths_B.device)
        return sites < self.lengths_B[:, None]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a copy to a GPU runs while the GPU works."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: Any) -> None:
        """Keep the memory of the batch, once it is dropped, until the work that a CUDA stream has by then has ended."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value.record_stream(stream)

    def __getitem__(self, rows: slice) -> Batch:
        """Return a slice of the samples: a micro-batch."""
        return self._map(lambda tensor: tensor[rows])

    def _map(self, change: Any) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: change(value) if isinstance(value, Tensor) else value for name, value in values.items()})


def require_ids(ids: object) -> None:
    """Raise ConfigError unless `ids` are a tensor of integers. Looks at no value, so it waits for no device."""
    if isinstance(ids, Tensor) and not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        return
    if isinstance(ids, Tensor):
        raise ConfigError(f"ids are a tensor of {ids.dtype}; expected integers, the ids themselves, such as batch.ids_BLQ of a TokenLoader")
    if isinstance(ids, np.ndarray):
        raise ConfigError(f"ids are a NumPy array of {ids.dtype}, {list(ids.shape)}; expected a tensor of integers: torch.from_numpy(ids)")
    inside = getattr(ids, "ids_BLQ", None)
    if inside is None:
        raise ConfigError(f"ids are {shorten(ids)}, a {type(ids).__name__}; expected a tensor of integers [samples, sites, levels]")
    how = "batch.ids_BLQ" if isinstance(inside, Tensor) else "torch.from_numpy(batch.ids_BLQ)"
    raise ConfigError(f"ids are {shorten(ids)}, a whole batch; expected its tensor of ids: {how}")


def require_batch(batch: object) -> None:
    """Raise ConfigError unless `batch` is a Batch of tensors."""
    if not isinstance(batch, Batch):
        raise ConfigError(
            f"the batch is {shorten(batch)}, of type {type(batch).__module__}.{type(batch).__name__}; expected a batch of a TokenLoader: "
            "for batch in tokenshards.TokenLoader(dataset, batch_size=64)"
        )
    require_ids(batch.ids_BLQ)
