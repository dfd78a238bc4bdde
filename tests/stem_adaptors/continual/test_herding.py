"""Herding, against a loop written from the formula."""

from __future__ import annotations

import numpy as np
import pytest

from tokenshards.stem_adaptors.continual.herding import herded, normalised


def slow(features_ND: np.ndarray, count: int) -> list[int]:
    """iCaRL, algorithm 4: p_k = argmin over x of | m - (1/k) (f(x) + sum over j < k of f(p_j)) |, of images that are not chosen yet."""
    mean, chosen = features_ND.mean(axis=0), []
    for k in range(1, count + 1):
        others = [place for place in range(len(features_ND)) if place not in chosen]
        sums = [features_ND[place] + sum(features_ND[one] for one in chosen) for place in others]
        chosen.append(others[int(np.argmin([np.linalg.norm(mean - one / k) for one in sums]))])
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_herding_is_the_greedy_loop_of_the_paper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features_ND = rng.normal(size=(30, 5)) * rng.uniform(0.2, 3, (30, 1)) + rng.normal(size=5)
    if seed % 2:
        features_ND = normalised(features_ND.astype(np.float32))
    found = herded(features_ND, 30)
    assert found.tolist() == slow(features_ND, 30) and sorted(found.tolist()) == list(range(30)), "each image once"
    assert herded(features_ND, 7).tolist() == found[:7].tolist(), "a prefix is the choice of fewer"
    assert len(herded(features_ND, 99)) == 30


def test_a_prefix_has_nearly_the_mean_of_its_class() -> None:
    rng = np.random.default_rng(0)
    features_ND = normalised(rng.normal(size=(400, 16)).astype(np.float32) + 0.3)
    mean = features_ND.mean(axis=0)
    away = [float(np.linalg.norm(features_ND[herded(features_ND, count)].mean(axis=0) - mean)) for count in (5, 20, 80)]
    by_chance = [float(np.linalg.norm(features_ND[:count].mean(axis=0) - mean)) for count in (5, 20, 80)]
    assert all(one < chance / 2 for one, chance in zip(away, by_chance, strict=True)) and away == sorted(away, reverse=True)


def test_features_have_length_one_and_equal_images_keep_their_order() -> None:
    unit_ND = normalised(np.array([[3, 4], [0, 0], [0, -2]], np.float32))
    np.testing.assert_allclose(unit_ND, [[0.6, 0.8], [0, 0], [0, -1]])
    assert herded(np.ones((4, 3)), 4).tolist() == [0, 1, 2, 3]
