from __future__ import annotations

import numpy as np
import pytest

from tokenshards.pipeline.tokenizers.kmeans import lloyd as module
from tokenshards.pipeline.tokenizers.kmeans.lloyd import cover, kmeans
from tokenshards.pipeline.tokenizers.nearest_code import BLOCK_ROWS, nearest_rows

NOTHING = np.zeros((0, 2), np.float32)


def points(*rows: tuple[float, float]) -> np.ndarray:
    return np.array(rows, np.float32)


def run(
    points_ND: np.ndarray, codes: int, *, weights: list[float] | None = None, pinned: np.ndarray = NOTHING, seed: int = 0
) -> np.ndarray:
    weights_N = np.ones(len(points_ND)) if weights is None else np.array(weights, float)
    return kmeans(points_ND, weights_N, codes, pinned_PD=pinned, iterations=10, rng=np.random.default_rng(seed))


def test_ties_go_to_the_lowest_row() -> None:
    table = points((5, 5), (0, 0), (2, 0), (2, 0))
    assert nearest_rows(points((1, 0), (2, 0), (4, 4)), table).tolist() == [1, 2, 0]


def test_blocks_join_without_a_seam() -> None:
    rng = np.random.default_rng(0)
    many, table = rng.random((BLOCK_ROWS + 5, 2), np.float32), rng.random((7, 2), np.float32)
    expected = np.square(many[:, None] - table).sum(axis=2).argmin(axis=1)
    assert np.array_equal(nearest_rows(many, table), expected)


def test_cover_takes_the_farthest_until_all_are_near() -> None:
    line = points((0, 0), (1, 0), (10, 0), (11, 0), (100, 0))
    assert cover(line, 10, radius=2).tolist() == [0, 4, 3]
    assert cover(line, 2, radius=2).tolist() == [0, 4]
    assert cover(line, 0, radius=2).tolist() == []
    assert cover(NOTHING, 5, radius=2).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_clusters_by_weight(seed: int) -> None:
    clusters = points((0, 0), (3, 0), (100, 0), (100, 3))
    centres = run(clusters, 2, weights=[1, 2, 1, 1], seed=seed)
    assert sorted(centres.tolist()) == [[2, 0], [100, 1.5]]


def test_pinned_centres_stay_and_the_rest_go_elsewhere() -> None:
    centres = run(points((0, 0), (1, 0), (50, 0), (51, 0)), 2, pinned=points((0, 0)))
    assert centres.tolist() == [[0, 0], [50.5, 0]]


def test_fewer_different_points_than_codes() -> None:
    same = points((1, 1), (1, 1), (2, 2), (1, 1))
    assert sorted(run(same, 8).tolist()) == [[1, 1], [2, 2]]
    assert run(same[:1], 8, pinned=points((1, 1))).tolist() == [[1, 1]]


def test_a_dead_centre_moves_to_the_worst_served_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seeds", lambda *_: points((0, 0), (1e6, 0)))
    assert sorted(run(points((0, 0), (1, 0), (40, 0)), 2).tolist()) == [[0.5, 0], [40, 0]]
