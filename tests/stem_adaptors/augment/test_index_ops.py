"""Operations on ids, each against a loop over samples, sites and ids written from its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.stem_adaptors.augment.layouts import CODES, GRIDS, grid, ids_of, keys_of, pyramid, sequence, spec_of, tables_of, video
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment import index_ops

LAYOUTS = [grid(*shape, levels) for shape in GRIDS for levels in (1, 2)]


def wide(ids_BLQ: torch.Tensor) -> torch.Tensor:
    return ids_BLQ.to(torch.int32)


def synonyms_of(spec: TokenizerSpec, count: int = 5) -> index_ops.Synonyms:
    return index_ops.Synonyms.packed(index_ops.synonym_table(tables_of(spec), count))


# Synonyms


@pytest.mark.parametrize("count", [1, 5, 100])
def test_synonym_table_ranks_by_cosine(count: int) -> None:
    tables = tables_of(spec_of(grid(4, 4, 2)))
    for level, table_KS in enumerate(index_ops.synonym_table(tables, count)):
        vectors = tables[f"level_{level}"].astype(float)
        assert table_KS.shape == (CODES, min(count, CODES - 1))
        for code in range(CODES):
            cosines = {
                other: vectors[code] @ vectors[other] / np.linalg.norm(vectors[code]) / np.linalg.norm(vectors[other])
                for other in range(CODES)
                if other != code
            }
            assert table_KS[code].tolist() == sorted(cosines, key=lambda other: -cosines[other])[:count]


@pytest.mark.parametrize("count", [1, 5, 30])
def test_synonym_table_ranks_by_distance(count: int) -> None:
    tables = tables_of(spec_of(grid(4, 4, levels=2)), seed=2)
    for level, table_KS in enumerate(index_ops.synonym_table(tables, count, "l2")):
        vectors = tables[f"level_{level}"].astype(np.float64)
        for code in range(CODES):
            others = [other for other in range(CODES) if other != code]
            nearest = sorted(others, key=lambda other: float(np.square(vectors[code] - vectors[other]).sum()))
            assert table_KS[code].tolist() == nearest[:count]


def test_synonym_table_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = tables_of(spec_of(grid(4, 4)))
    whole = index_ops.synonym_table(tables, 4)
    monkeypatch.setattr(index_ops, "_BLOCK_CODES", 7)
    assert torch.equal(index_ops.synonym_table(tables, 4)[0], whole[0])


def test_synonyms_of_a_single_code_and_of_no_codebook() -> None:
    assert index_ops.synonym_table({"level_0": np.ones((1, 3), np.float32)}, 5)[0].tolist() == [[0]]
    with pytest.raises(ConfigError, match="synonym_prob"):
        index_ops.synonym_table({}, 5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_synonyms_replace_ids_one_by_one(layout: Layout) -> None:
    spec = spec_of(layout)
    synonyms = synonyms_of(spec)
    tables = index_ops.synonym_table(tables_of(spec), 5)
    ids_BLQ, keys = wide(ids_of(spec, 6)), keys_of(6)
    result = index_ops.replace_synonyms(ids_BLQ, keys, synonyms, 0.25)
    expected = ids_BLQ.clone()
    for level in range(layout.ids_per_site):
        shares = keys.uniform(f"synonyms.replace.{level}", layout.sites).tolist()
        draws = keys.integers(f"synonyms.draw.{level}", 5, layout.sites).tolist()
        for sample in range(6):
            for site in range(layout.sites):
                if shares[sample][site] < 0.25:
                    own = int(ids_BLQ[sample, site, level])
                    expected[sample, site, level] = tables[level][own, draws[sample][site]]
    assert torch.equal(result, expected)
    assert 0 < (result != ids_BLQ).sum() < result.numel()


def test_share_of_replaced_ids() -> None:
    spec = spec_of(grid(16, 16))
    ids_BLQ = wide(ids_of(spec, 64))
    changed = index_ops.replace_synonyms(ids_BLQ, keys_of(64), synonyms_of(spec), 0.3) != ids_BLQ
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.02), "a synonym always differs from the id"


def test_pad_ids_have_no_synonyms() -> None:
    spec = spec_of(sequence(9, variable=True))
    ids_BLQ = wide(ids_of(spec, 4))
    ids_BLQ[1, 5:] = CODES
    result = index_ops.replace_synonyms(ids_BLQ, keys_of(4), synonyms_of(spec), 1.0)
    assert (result[1, 5:] == CODES).all()
    real = ids_BLQ < CODES
    assert (result[real] != ids_BLQ[real]).all() and (result[real] < CODES).all()


def test_synonyms_of_a_short_row_do_not_depend_on_the_longest_row_of_its_batch() -> None:
    spec = spec_of(sequence(12, ids_per_site=3, combine="sum", variable=True))
    synonyms = synonyms_of(spec)
    ids_BLQ, keys = wide(ids_of(spec, 4)), keys_of(4)
    ids_BLQ[2:, 7:] = CODES
    beside = index_ops.replace_synonyms(ids_BLQ, keys, synonyms, 0.5)
    alone = index_ops.replace_synonyms(ids_BLQ[2:, :7], keys[2:], synonyms, 0.5)
    assert torch.equal(beside[2:, :7], alone) and not torch.equal(alone, ids_BLQ[2:, :7])


# Block swap


def swapped(ids_HW: np.ndarray, first: list[int], second: list[int], side: int) -> np.ndarray:
    result = ids_HW.copy()
    for corner, other in ((first, second), (second, first)):
        for row in range(side):
            for column in range(side):
                result[corner[0] + row, corner[1] + column] = ids_HW[other[0] + row, other[1] + column]
    return result


@pytest.mark.parametrize("share", [0.25, 0.6])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_blocks_change_places_with_all_ids_of_a_site(layout: Layout, share: float) -> None:
    height, width = layout.grid
    ids_BLQ, keys = wide(ids_of(spec_of(layout), 40)), keys_of(40)
    result = index_ops.swap_blocks(ids_BLQ, *index_ops.swap_corners(keys, (height, width), share), (height, width))
    sides = keys.uniform("swap.side").tolist()
    changed = 0
    for sample in range(40):
        side = math.floor(min(height, width) * share * sides[sample][0])
        highs = torch.tensor([height - side, width - side]).repeat(2 * index_ops.SWAP_TRIES)
        draws = keys[sample : sample + 1].integers("swap.corners", highs, 4 * index_ops.SWAP_TRIES)[0].tolist()
        expected = ids_BLQ[sample].numpy()
        for attempt in range(index_ops.SWAP_TRIES):
            first, second = draws[4 * attempt : 4 * attempt + 2], draws[4 * attempt + 2 : 4 * attempt + 4]
            if math.dist(first, second) > side:
                planes = expected.reshape(height, width, -1)
                expected = swapped(planes, first, second, side).reshape(expected.shape)
                break
        np.testing.assert_array_equal(result[sample].numpy(), expected)
        changed += int(not np.array_equal(expected, ids_BLQ[sample].numpy()))
    assert changed > 0


def test_swap_geometry_holds_its_bounds() -> None:
    corners_B22, side_B = index_ops.swap_corners(keys_of(5000), (32, 24), 0.25)
    first_B2, second_B2 = corners_B22.unbind(1)
    assert sorted(set(side_B.tolist())) == list(range(6)), "floor(24 * 0.25 * U)"
    assert np.bincount(side_B.numpy()).min() > 700, "sides are even"
    for corner_B2 in (first_B2, second_B2):
        assert (corner_B2 >= 0).all()
        assert (corner_B2 < torch.tensor([32, 24]) - side_B[:, None]).all()
    distance_B = (first_B2 - second_B2).double().square().sum(1).sqrt()
    assert (distance_B > side_B)[side_B > 0].all()


def test_a_sample_stays_when_no_two_blocks_are_far_enough_apart() -> None:
    _, side_B = index_ops.swap_corners(keys_of(2000), (32, 32), 1.0)
    assert 0 < side_B.max() <= 18, "a side of 19 leaves corners less than 19 apart"
    assert (side_B == 0).float().mean() > 0.35


def test_swap_moves_the_same_blocks_of_every_frame() -> None:
    layout, keys = video(3, 8, 6), keys_of(30)
    ids_BLQ = wide(ids_of(spec_of(layout), 30))
    result = index_ops.swap_blocks(ids_BLQ, *index_ops.swap_corners(keys, (8, 6), 0.5), (8, 6)).reshape(30, 3, 48, 1)
    for frame in range(3):
        alone = index_ops.swap_blocks(ids_BLQ.reshape(30, 3, 48, 1)[:, frame], *index_ops.swap_corners(keys, (8, 6), 0.5), (8, 6))
        assert torch.equal(result[:, frame], alone)


# Mirroring


def test_mirrored_sites_turn_rows_of_every_plane() -> None:
    for layout, shapes in (
        (grid(3, 5, 2), [(3, 5)]),
        (video(2, 3, 4), [(2, 3, 4)]),
        (pyramid((1, 1), (2, 2), (3, 4)), [(1, 1), (2, 2), (3, 4)]),
    ):
        ids_BLQ = wide(ids_of(spec_of(layout), 3))
        result = ids_BLQ.index_select(1, index_ops.mirrored_sites(layout))
        for sample in range(3):
            start = 0
            for shape in shapes:
                stop = start + math.prod(shape)
                plane = ids_BLQ[sample, start:stop].numpy().reshape(*shape, -1)
                np.testing.assert_array_equal(result[sample, start:stop].numpy().reshape(plane.shape), plane[..., ::-1, :])
                start = stop
