"""Slots look at ids that are decoded before, at the places that their names say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.pipeline.shards.samples import LAYOUTS
from tokenshards.pipeline.shards.compact.code_tree import digits_for, tree_paths
from tokenshards.pipeline.shards.compact.contexts import Contexts, Slot, contexts_of, slots_of
from tokenshards.pipeline.shards.spec import Layout


def contexts(layout: Layout, shape: tuple[int, ...] = ()) -> Contexts:
    return contexts_of(layout, shape or layout.grid or (layout.sites,), slots_of(layout))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_slot_is_decoded_before(name: str) -> None:
    layout = LAYOUTS[name]
    found, slots = contexts(layout), slots_of(layout)
    count = layout.sites * layout.ids_per_site
    assert found.earlier_TN.shape[0] == len(found.levels_T) == len(found.bases_T) == count
    assert (found.earlier_TN < np.arange(count)[:, None]).all()
    for level, own in enumerate(slots):
        own_T = np.flatnonzero(found.levels_T == level)
        assert (own_T // layout.sites == level).all()
        for place, slot in enumerate(own):
            inside = found.earlier_TN[own_T, place]
            assert (inside[inside >= 0] // layout.sites == slot.level).all()
        assert (found.earlier_TN[own_T, len(own) :] == -1).all()
    assert (found.earlier_TN[:, 0] >= 0).sum() > 0


def test_the_neighbours_of_a_grid_with_two_levels() -> None:
    layout = Layout(kind="grid", grid=(3, 4), sites=12, ids_per_site=2, combine="sum")
    found, slots = contexts(layout), slots_of(layout)
    first = dict(zip(slots[0], found.earlier_TN[6].tolist(), strict=False))  # row 1, column 2
    assert first[Slot(0, (0, 0, -1))] == 5 and first[Slot(0, (0, -1, 0))] == 2 and first[Slot(0, (0, -1, 1))] == 3
    assert first[Slot(0, (0, -2, 0))] == -1 and first[Slot(0, (0, -1, 2))] == -1
    second = dict(zip(slots[1], found.earlier_TN[12 + 6].tolist(), strict=False))
    assert second[Slot(0, (0, 0, 0))] == 6 and second[Slot(0, (0, 1, 0))] == 10, "the level before is known everywhere"
    assert second[Slot(1, (0, 0, -1))] == 12 + 5


def test_the_parents_of_a_pyramid_and_the_frame_before() -> None:
    pyramid = LAYOUTS["pyramid"]  # 1 x 1, 2 x 2, 3 x 3
    found = contexts(pyramid)
    own = dict(zip(slots_of(pyramid)[0], found.earlier_TN[5 + 8].tolist(), strict=False))  # the last site of the last scale
    assert own[Slot(0, (0, 0, 0), parent=True)] == 4 and own[Slot(0, (0, 0, -1))] == 12
    assert found.bases_T.tolist() == [0] + 4 * [1] + 9 * [2]
    video = LAYOUTS["video"]  # 2 frames of 2 x 3
    own = dict(zip(slots_of(video)[0], contexts(video).earlier_TN[7].tolist(), strict=False))
    assert own[Slot(0, (-1, 0, 0))] == 1 and own[Slot(0, (-1, 0, 1))] == 2 and own[Slot(0, (0, 0, -1))] == 6


def test_rows_of_another_shape_have_neighbours_of_their_own() -> None:
    layout = LAYOUTS["grid_variable"]
    found = contexts(layout, (2, 3))
    assert len(found.levels_T) == 12 and found.earlier_TN[3, 1] == 0, "above the first site of the second row of three"


@pytest.mark.parametrize("codes", [1, 2, 7, 8, 9, 64, 65, 391, 1024, 5000])
@pytest.mark.parametrize("vectors", [False, True])
def test_paths_tell_codes_apart(codes: int, vectors: bool) -> None:
    vectors_KD = np.random.default_rng(0).standard_normal((codes, 4)).astype(np.float32)
    paths_K = tree_paths(vectors_KD if vectors else None, codes)
    assert len(set(paths_K.tolist())) == codes and int(paths_K.max()) < 8 ** digits_for(codes)
    assert digits_for(codes) == max(1, math.ceil(math.log(codes, 8) - 1e-9))


def test_near_codes_share_their_first_digits() -> None:
    rng = np.random.default_rng(0)
    centres_KD = np.repeat(rng.standard_normal((8, 5)) * 9, 8, axis=0) + rng.standard_normal((64, 5)) * 0.1
    paths_K = tree_paths(centres_KD.astype(np.float32), 64)
    assert all(len(set((paths_K[start : start + 8] >> 3).tolist())) == 1 for start in range(0, 64, 8))


def test_equal_vectors_have_paths_too() -> None:
    paths_K = tree_paths(np.zeros((100, 3), np.float32), 100)
    assert len(set(paths_K.tolist())) == 100
