"""A model as the kernels of `lockstep` read it: the integers of all levels in a few arrays.

Shapes: N slots, H = 32 hidden numbers, V nodes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.shards.compact.code_tree import BRANCHES
from tokenshards.pipeline.shards.compact.model import MOST_WIDTH, CompactModel, weight_table

__all__ = ["KernelModel", "kernel_model"]

SLOTS_TOGETHER = 4


@dataclass(frozen=True, slots=True, eq=False)
class KernelModel:
    """The integers of all levels of a model, one after the other, as the kernels read them."""

    slots: int
    """N of the level that has most, up to the next multiple of four; the rows of the others are zeros."""
    arrays: tuple[npt.NDArray[Any], ...]


@functools.lru_cache(maxsize=8)
def kernel_model(model: CompactModel, weight_order: tuple[int, ...]) -> KernelModel:
    """Return a model as the kernels read it. `weight_order`: places in the 8 x 32 weights of a node, in the order of the kernels."""
    most = max(len(level.slots) for level in model.levels)
    slots = max(SLOTS_TOGETHER, -(-most // SLOTS_TOGETHER) * SLOTS_TOGETHER)
    count = len(model.levels)
    starts, sizes = np.zeros((count, slots), np.int64), np.zeros((count, slots), np.int64)
    firsts = np.zeros((count, 5), np.int64)  # of bases, nodes, codes and paths; and the digits
    # The first table row is that of slots that a level has not.
    tables: list[npt.NDArray[Any]] = [np.zeros((1, MOST_WIDTH), np.int16)]
    bases, weights, biases, codes, paths = (list[npt.NDArray[Any]]() for _ in range(5))
    for number, level in enumerate(model.levels):
        own = len(level.slots)
        starts[number, :own], sizes[number, :own] = _rows(tables) + level.starts, level.sizes
        firsts[number] = (*(_rows(part) for part in (bases, weights, codes, paths)), level.digits)
        tables.append(_wide(level.tables_RH))
        bases.append(_wide(level.bases_BH))
        weights.append(_wide(level.weights_V8H).reshape(-1, BRANCHES * MOST_WIDTH)[:, weight_order].reshape(-1, MOST_WIDTH, BRANCHES))
        biases.append(level.biases_V8)
        own_codes = np.full(8**level.digits, -1, np.int64)
        own_codes[level.paths_K] = np.arange(level.codes)
        codes.append(own_codes)
        paths.append(level.paths_K.astype(np.int64))
    down = np.array([level.down for level in model.levels], np.int64)
    parts = (tables, bases, weights, biases, codes, paths)
    joined = tuple(np.ascontiguousarray(np.concatenate(part)) for part in parts)
    return KernelModel(slots, (starts, sizes, firsts, *joined, down, weight_table()))


def _rows(parts: Sequence[npt.NDArray[Any]]) -> int:
    return sum(len(part) for part in parts)


def _wide(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array with zeros up to H on the last axis."""
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, MOST_WIDTH - array.shape[-1])])
