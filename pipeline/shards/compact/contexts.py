"""Which earlier ids an id is expected from: for each layout the order in which a row's ids are coded, and the places of their neighbours.

All ids of level 0 are coded first, then those of level 1, …, each level in the order of its sites. So an id may look at ids of its own
level that come before it, and at all ids of the levels before.

Shapes: T ids of a row in coding order, N slots, S sites.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.shards.spec import Layout

__all__ = ["Contexts", "Slot", "base_count", "contexts_of", "slots_of"]

Place = tuple[int, int, int]
"""(frame, row, column), or a difference of two."""

BEFORE: tuple[Place, ...] = (
    (0, 0, -1), (0, -1, 0), (0, -1, -1), (0, -1, 1), (0, 0, -2), (0, -2, 0), (0, -1, 2), (0, -1, -2),
)  # fmt: skip
"""Neighbours of a site that come before it, the most telling first."""
AROUND: tuple[Place, ...] = ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 0, -1), (0, -1, 0))
"""A site and its neighbours, of ids that are all known."""
SEQUENCE_SLOTS = 8
EARLIER_LEVELS = 2
"""Levels before the last one whose id at the same site is looked at."""
MOST_BASES = 1024
"""Places of a sequence that have a bias of their own; the later ones share the last."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A neighbour: the id of `level` at a difference of places; with `parent` on the scale before."""

    level: int
    step: Place
    parent: bool = False


@dataclass(frozen=True, slots=True)
class Contexts:
    """The coding order of a row's ids."""

    levels_T: npt.NDArray[np.uint8]
    bases_T: npt.NDArray[np.int32]
    """Which bias of its level an id has: the scale in a pyramid, the place in an ordered sequence, else 0."""
    earlier_TN: npt.NDArray[np.int32]
    """Place of the id of each slot in the coding order; -1 outside of the row, and for slots that the level has not."""


def slots_of(layout: Layout) -> tuple[tuple[Slot, ...], ...]:
    """Return the slots of each level, the most telling first."""
    return tuple(tuple(_slots(layout, level)) for level in range(layout.ids_per_site))


def _slots(layout: Layout, level: int) -> Iterator[Slot]:
    if layout.kind == "sequence":
        own: tuple[Place, ...] = tuple((0, 0, -back) for back in range(1, SEQUENCE_SLOTS + 1))
        around: tuple[Place, ...] = ((0, 0, 0), (0, 0, 1), (0, 0, -1))
    else:
        own, around = BEFORE, AROUND
    if level:
        yield from (Slot(level - 1, step) for step in around)
        yield from (Slot(level, step) for step in own[:4])
        yield from (Slot(earlier, (0, 0, 0)) for earlier in range(level - 2, max(-1, level - 2 - EARLIER_LEVELS), -1))
        return
    if layout.kind == "pyramid":
        yield from (Slot(0, step, parent=True) for step in AROUND)
        yield from (Slot(0, step) for step in own[:6])
    elif layout.kind == "video":
        before = tuple((-1, row, column) for _, row, column in AROUND)
        yield from (Slot(0, step) for step in (before[0], *own[:4], *before[1:], *own[4:6]))
    else:
        yield from (Slot(0, step) for step in own)


def base_count(layout: Layout) -> int:
    """Return how many biases a level has."""
    if layout.kind == "pyramid":
        return len(layout.scales)
    return min(layout.sites, MOST_BASES) if layout.kind == "sequence" and layout.ordered else 1


@functools.lru_cache(maxsize=256)
def contexts_of(layout: Layout, shape: tuple[int, ...], slots: tuple[tuple[Slot, ...], ...]) -> Contexts:
    """Return the coding order of rows of a layout. `shape`: (h, w) or (t, h, w) of grids and videos, (length,) of sequences."""
    boxes = [(1, *scale) for scale in layout.scales] if layout.kind == "pyramid" else [((1, 1, 1) + shape)[-3:]]
    sizes = [frames * rows * columns for frames, rows, columns in boxes]
    starts, sites = np.concatenate([[0], np.cumsum(sizes)[:-1]]), sum(sizes)
    most = max(map(len, slots))
    levels, bases, earlier = [], [], []
    for level, own in enumerate(slots):
        for number, box in enumerate(boxes):
            places_S3 = np.stack([axis.ravel() for axis in np.indices(box)], axis=1)
            found_SN = np.full((len(places_S3), most), -1, np.int32)
            for place, slot in enumerate(own):
                there, into = places_S3, number - slot.parent
                if into < 0:
                    continue
                if slot.parent:
                    there = (2 * places_S3 + 1) * np.array(boxes[into]) // (2 * np.array(box))
                there = there + np.array(slot.step)
                inside_S = ((there >= 0) & (there < np.array(boxes[into]))).all(axis=1)
                site_S = (there[:, 0] * boxes[into][1] + there[:, 1]) * boxes[into][2] + there[:, 2]
                found_SN[inside_S, place] = (slot.level * sites + starts[into] + site_S)[inside_S]
            levels.append(np.full(len(places_S3), level, np.uint8))
            ordered = layout.kind == "sequence" and layout.ordered
            bases.append(np.minimum(places_S3[:, 2], MOST_BASES - 1) if ordered else np.full(len(places_S3), number * (len(boxes) > 1)))
            earlier.append(found_SN)
    return Contexts(np.concatenate(levels), np.concatenate(bases).astype(np.int32), np.concatenate(earlier))
