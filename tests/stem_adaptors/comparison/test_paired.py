"""The bootstrap gives every side the same draws, and equals one that is written out slowly."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.stem_adaptors.comparison.paired import interval, packed, resampled, unpacked


def right_of(seeds: int, images: int, share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((seeds, images)) < share).astype(np.float64)


def slow(right_SN: np.ndarray, resamples: int) -> list[float]:
    """Mean over every pair of a drawn image and a drawn seed, one after the other."""
    seeds, images = right_SN.shape
    rng, found = np.random.default_rng(0), []
    for _ in range(resamples):
        images_N, seeds_S = rng.integers(0, images, images), rng.integers(0, seeds, seeds)
        found.append(sum(right_SN[s, n] for s in seeds_S for n in images_N) / (seeds * images))
    return found


def test_means_are_those_of_the_drawn_images_and_seeds() -> None:
    right = {"a": right_of(3, 17, 0.7, 1), "b": right_of(3, 17, 0.4, 2)}
    found = resampled(right, 50)
    for name, right_SN in right.items():
        np.testing.assert_allclose(found[name], slow(right_SN, 50), rtol=1e-12)


def test_equal_sides_differ_in_no_draw_and_a_constant_lead_has_no_width() -> None:
    first = right_of(2, 40, 0.5, 3)
    means = resampled({"a": first, "b": first.copy(), "c": first + 1}, 200)
    assert (means["a"] == means["b"]).all()
    assert interval(means["c"] - means["a"]) == [1.0, 1.0]
    assert interval(means["a"])[0] < first.mean() < interval(means["a"])[1]


def test_the_interval_of_one_seed_is_that_of_the_binomial() -> None:
    """2.5 % and 97.5 % of 100 images of which 60 are right: 0.6 +- 1.96 sqrt(0.24 / 100)."""
    right_SN = np.zeros((1, 100))
    right_SN[0, :60] = 1
    low, high = interval(resampled({"a": right_SN})["a"])
    assert abs(low - 0.504) < 0.012 and abs(high - 0.696) < 0.012


def test_seeds_that_disagree_widen_the_interval() -> None:
    agreeing, differing = np.zeros((4, 100)), np.zeros((4, 100))
    agreeing[:, :50] = 1
    differing[:2] = 1
    widths = [high - low for low, high in (interval(resampled({"a": one}, 500)["a"]) for one in (agreeing, differing))]
    assert widths[1] > 3 * widths[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4), st.integers(1, 9))
def test_what_is_packed_comes_back(rows: list[list[bool]], images: int) -> None:
    right_SN = np.array(rows)[:, :images]
    found = unpacked([packed(right_N) for right_N in right_SN], images)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, right_SN)
