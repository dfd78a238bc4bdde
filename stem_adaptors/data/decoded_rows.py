"""Decoded rows in flat arrays, in memory or in files that are mapped.

Shapes: N rows, B rows asked for, Q ids per site, L sites (the longest row of a batch where they vary), D dimensions of a ragged
layout's shape, H x W pixels of a label map. Ids are level-major: all L ids of level 0, then of level 1, …
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.pipeline.shards.spec import TokenizerSpec

__all__ = ["Arrays", "DecodedRows", "Rows", "array_names", "map_array", "write_rows"]

Rows: TypeAlias = npt.NDArray[np.int64]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


class DecodedRows:
    """Rows in arrays, in memory or mapped: `ids` [N, Q, L] and `labels` [N]; ragged: flat `ids`, `offsets` [N + 1], `shapes` [N, D].

    `maps` [N, H, W] where label maps were asked for.
    """

    def __init__(self, spec: TokenizerSpec, arrays: Arrays) -> None:
        self.spec = spec
        self.labels_N: npt.NDArray[np.int64] = arrays["labels"]
        """Class indices, -1 where a row has no label."""
        self._ids = arrays["ids"].reshape(-1) if spec.layout.variable else arrays["ids"].reshape(len(self.labels_N), -1)
        self._offsets = arrays.get("offsets")
        self._shapes = arrays.get("shapes")
        self._maps_NHW = arrays.get("maps")

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows_B: Rows) -> TokenBatch:
        """Return a copy of the given rows, in that order. Ragged rows are padded with zeros to the longest of them."""
        levels = self.spec.layout.ids_per_site
        if self._offsets is None:
            ids_BQL = np.take(self._ids, rows_B, axis=0).reshape(len(rows_B), levels, -1)
            return TokenBatch(ids_BQL.transpose(0, 2, 1))
        starts_B = self._offsets[rows_B]
        lengths_B = (self._offsets[rows_B + 1] - starts_B) // levels
        sites_L = np.arange(lengths_B.max(initial=0))
        used_B1L = (sites_L < lengths_B[:, None])[:, None]
        level_starts_BQ = starts_B[:, None] + np.arange(levels) * lengths_B[:, None]
        places_BQL = np.where(used_B1L, level_starts_BQ[:, :, None] + sites_L, 0)
        ids_BQL = np.where(used_B1L, self._ids[places_BQL], self._ids.dtype.type(0))
        shapes_BD = None if self._shapes is None else self._shapes[rows_B]
        return TokenBatch(ids_BQL.transpose(0, 2, 1), lengths_B.astype(np.int32) if shapes_BD is None else None, shapes_BD)

    def take_maps(self, rows_B: Rows) -> npt.NDArray[Any] | None:
        """Return a copy [B, H, W] of the label maps of the given rows; None where they were not asked for."""
        return None if self._maps_NHW is None else np.take(self._maps_NHW, rows_B, axis=0)


def write_rows(
    groups: Iterable[Arrays], spec: TokenizerSpec, sinks: Mapping[str, BinaryIO], maps: MaskFormat | None = None
) -> dict[str, tuple[np.dtype[Any], list[int]]]:
    """Append row groups to one binary sink per array of `array_names`; return dtype and shape of each array."""
    layout = spec.layout
    rows = ids = 0
    if layout.variable:
        sinks["offsets"].write(np.zeros(1, np.int64).data)
    for arrays in groups:
        if layout.variable:
            sinks["offsets"].write((ids + np.cumsum(arrays["sizes"], dtype=np.int64)).data)
        for name in sinks.keys() - {"offsets"}:
            sinks[name].write(np.ascontiguousarray(arrays[name]).reshape(-1).data)
        rows += len(arrays["labels"])
        ids += arrays["ids"].size
    fixed = [rows, layout.ids_per_site, layout.sites]
    every = {
        "ids": (spec.id_dtype, [ids] if layout.variable else fixed),
        "labels": (np.dtype(np.int64), [rows]),
        "offsets": (np.dtype(np.int64), [rows + 1]),
        "shapes": (np.dtype(np.int32), [rows, layout.shape_dims]),
    }
    if maps is not None:
        every["maps"] = np.dtype(maps.dtype), [rows, maps.height, maps.width]
    return {name: every[name] for name in sinks}


def array_names(spec: TokenizerSpec, maps: MaskFormat | None = None) -> tuple[str, ...]:
    """Return the names of the arrays that hold rows of this layout, with label maps where their format is given."""
    ragged: tuple[str, ...] = ("offsets", "shapes") if spec.layout.shape_dims else ("offsets",)
    return "ids", "labels", *(ragged if spec.layout.variable else ()), *(() if maps is None else ("maps",))


def map_array(file: Path, dtype: np.dtype[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Map a file of an array read-only; raises CorruptObjectError if its size is another."""
    expected = math.prod(shape) * dtype.itemsize
    found = file.stat().st_size
    if found != expected:
        raise CorruptObjectError(file.name, f"{found} bytes; expected {expected}")
    if not expected:
        return np.zeros(shape, dtype)  # an empty file cannot be mapped
    return np.memmap(file, dtype, "r", shape=tuple(shape)).view(np.ndarray)
