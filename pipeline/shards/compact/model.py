"""The model of `compact`: for each level the integers from which the chances of a digit follow.

For an id, the hidden numbers are h = clamp((base + sum of the table rows of its slots) >> 7, 0, 127). For a digit at a node of the level's
tree, the score of branch i is a_i = bias_i + weight_i . h, and its chance falls with the distance d of its score to the best, as
2^(-(d >> down) / 256). All of it is integer arithmetic, so that every machine gets the same chances; no sum of a level is larger than
2^24, so float32 holds each exactly, in any order of adding.

Shapes: K codes of the slot's level, R rows of all tables of a level, H hidden numbers, V nodes of a tree, J digits of a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.shards.compact.code_tree import BRANCHES, digits_for
from tokenshards.pipeline.shards.compact.contexts import Slot

__all__ = ["CHANCE_BITS", "MOST_HIDDEN", "NO_CHANCE", "SHIFT", "CompactModel", "LevelModel", "cumulative", "node_starts", "weight_table"]

SHIFT = 7
MOST_HIDDEN = 127
MOST_WIDTH = 32
"""Hidden numbers: a score without its bias stays below 2^20."""
EXACT = 1 << 24
CHANCE_BITS = 15
NO_CHANCE = 4096
"""At 2^-16 of the best branch and below, a branch has no chance but the one of 2^15 that each keeps."""


@dataclass(frozen=True, slots=True, eq=False)
class LevelModel:
    """The integers of one level."""

    slots: tuple[Slot, ...]
    sizes: tuple[int, ...]
    """Codes of each slot's level; each table has one row more, for places outside of the row."""
    codes: int
    tables_RH: npt.NDArray[np.int16]
    """The tables of all slots below each other."""
    bases_BH: npt.NDArray[np.int32]
    weights_V8H: npt.NDArray[np.int8]
    biases_V8: npt.NDArray[np.int32]
    down: int
    """One halving of a chance is 256 * 2^down of score."""
    paths_K: npt.NDArray[np.uint32]

    @property
    def digits(self) -> int:
        """J."""
        return digits_for(self.codes)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Return the first row of each slot's table."""
        return (
            np.concatenate([[0], np.cumsum([size + 1 for size in self.sizes])[:-1]]).astype(np.int64)
            if self.sizes
            else np.zeros(0, np.int64)
        )

    def check(self) -> None:
        """Raise ValueError where an integer is outside of what makes all arithmetic exact, or parts do not fit each other."""
        hidden, nodes = self.bases_BH.shape[1], node_starts(self.digits)[-1]
        shapes: dict[str, tuple[npt.NDArray[Any], tuple[int, ...], str]] = {
            "tables": (self.tables_RH, (sum(size + 1 for size in self.sizes), hidden), "int16"),
            "weights": (self.weights_V8H, (nodes, BRANCHES, hidden), "int8"),
            "biases": (self.biases_V8, (nodes, BRANCHES), "int32"),
            "bases": (self.bases_BH, (len(self.bases_BH), hidden), "int32"),
            "paths": (self.paths_K, (self.codes,), "uint32"),
        }
        for name, (array, shape, dtype) in shapes.items():
            if array.shape != shape or array.dtype != dtype or not len(array) and name != "tables":
                raise ValueError(f"{name} are {array.dtype} {list(array.shape)}; expected {dtype} {list(shape)}")
        if not 0 <= self.down <= MOST_DOWN:
            raise ValueError(f"down is {self.down}; expected 0 to {MOST_DOWN}")
        if (
            len(self.slots) != len(self.sizes)
            or int(np.abs(self.bases_BH.astype(np.int64)).max(initial=0)) + 32768 * len(self.slots) >= EXACT
        ):
            raise ValueError("the sums of tables and bases are too large; expected less than 2^24")
        present = self.biases_V8 != NEVER
        if (np.abs(self.biases_V8.astype(np.int64))[present] > LARGEST_BIAS).any() or hidden > MOST_WIDTH:
            raise ValueError(
                f"biases go up to {int(np.abs(self.biases_V8[present]).max())}, hidden numbers are {hidden}; "
                f"expected at most {LARGEST_BIAS} and {MOST_WIDTH}"
            )
        paths = self.paths_K.astype(np.int64)
        if len(np.unique(paths)) != self.codes or int(paths.max()) >= BRANCHES**self.digits:
            raise ValueError(f"the paths of {self.codes} codes are not different numbers below {BRANCHES**self.digits}")
        first = node_starts(self.digits)
        for digit in range(self.digits):
            down = 3 * (self.digits - digit - 1)
            if not present[first[digit] + (paths >> down + 3), paths >> down & 7].all():
                raise ValueError("a path leads over a branch that has no chance")

    def hidden(self, ids_BN: npt.NDArray[np.int64], base: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return int32 [B, H]. `ids_BN`: the id of each slot, K outside of the row. `base`: [H] or [B, H]."""
        total_BH = np.broadcast_to(base, (len(ids_BN), self.bases_BH.shape[1])).astype(np.int32)
        for slot, start in enumerate(self.starts):
            total_BH += self.tables_RH[start + ids_BN[:, slot]]
        found_BH: npt.NDArray[np.int32] = np.clip(total_BH >> SHIFT, 0, MOST_HIDDEN)
        return found_BH

    def scores(self, hidden_BH: npt.NDArray[np.int32], nodes_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return int32 [B, 8], the scores of the branches at a node of each row."""
        # Products of at most 127 * 127, of which 2^10 fit into float32 without rounding.
        weights_B8H = self.weights_V8H[nodes_B].astype(np.float32)
        products_B8 = np.matmul(weights_B8H, hidden_BH.astype(np.float32)[:, :, None])[:, :, 0]
        found_B8: npt.NDArray[np.int32] = products_B8.astype(np.int32) + self.biases_V8[nodes_B]
        return found_B8


@dataclass(frozen=True, slots=True, eq=False)
class CompactModel:
    """A model for the ids of one tokenizer."""

    levels: tuple[LevelModel, ...]

    @property
    def slots(self) -> tuple[tuple[Slot, ...], ...]:
        """The slots of each level."""
        return tuple(level.slots for level in self.levels)

    def nbytes(self) -> int:
        """Return the size of all integers."""
        return sum(
            array.nbytes
            for level in self.levels
            for array in (level.tables_RH, level.bases_BH, level.weights_V8H, level.biases_V8, level.paths_K.astype(np.uint16))
        )


NEVER = -(1 << 23)
"""The bias of a branch below which no id lies."""
LARGEST_BIAS = 1 << 21
MOST_DOWN = 10


def weight_table() -> npt.NDArray[np.int64]:
    """Return int64 [4097], 2^15 * 2^(-i / 256) by a polynomial of the second degree for the part of i below 256."""
    power = np.arange(NO_CHANCE + 1)
    whole, part = power >> 8, power & 255
    found: npt.NDArray[np.int64] = (32768 - (part * (22006 - (5622 * part >> 8)) >> 8)) >> whole
    return found


_WEIGHTS = weight_table()


def cumulative(scores_B8: npt.NDArray[np.int32], down: int) -> npt.NDArray[np.int64]:
    """Return int64 [B, 9], where the share of each branch of 2^15 begins, and 2^15."""
    distance_B8 = scores_B8.max(axis=-1, keepdims=True) - scores_B8
    sums_B8 = np.cumsum(_WEIGHTS[np.minimum(distance_B8 >> down, NO_CHANCE)], axis=-1)
    inverse_B1 = ((1 << CHANCE_BITS) - BRANCHES << 16) // sums_B8[..., -1:]
    found_B9 = np.zeros((*scores_B8.shape[:-1], BRANCHES + 1), np.int64)
    found_B9[..., 1:BRANCHES] = (sums_B8[..., :-1] * inverse_B1 >> 16) + np.arange(1, BRANCHES)
    found_B9[..., BRANCHES] = 1 << CHANCE_BITS
    return found_B9


def node_starts(digits: int) -> list[int]:
    """Return the number of the first node of each digit: 0, 1, 9, 73, …"""
    return [(BRANCHES**digit - 1) // (BRANCHES - 1) for digit in range(digits + 1)]
