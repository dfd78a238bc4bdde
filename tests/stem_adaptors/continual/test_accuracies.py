"""The figures of a chain, against loops written from the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.stem_adaptors.continual.accuracies import figures_of, hits_of, matrix_of


def slow(right_TN: np.ndarray, group_N: np.ndarray) -> tuple[list[float], float, float]:
    """Accuracy after each step; average incremental accuracy; forgetting. One image and one group at a time, every group has images."""
    steps = len(right_TN)
    a = {
        (step, group): np.mean([right_TN[step, n] for n in range(len(group_N)) if group_N[n] == group])
        for step in range(steps)
        for group in range(step + 1)
    }
    after = [float(np.mean([right_TN[step, n] for n in range(len(group_N)) if 0 <= group_N[n] <= step])) for step in range(steps)]
    lost = [max(a[before, group] for before in range(group, steps - 1)) - a[steps - 1, group] for group in range(steps - 1)]
    return after, float(np.mean(after)), float(np.mean(lost))


@given(steps=st.integers(2, 6), more=st.integers(0, 60), seed=st.integers(0, 10_000))
@settings(deadline=None)
def test_figures_are_those_of_the_formulas(steps: int, more: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    group_N = np.concatenate([np.arange(steps), rng.integers(-1, steps, more)])
    right_TN = (rng.random((steps, len(group_N))) < 0.6).astype(float)
    after, incremental, forgetting = slow(right_TN, group_N)
    counts = hits_of(right_TN, group_N, np.ones((1, len(group_N))))
    np.testing.assert_allclose(figures_of(*counts), [[*after, incremental, forgetting]], atol=1e-12)
    matrix_TJ = matrix_of(*counts)[0]
    assert np.isnan(matrix_TJ[np.triu_indices(steps, 1)]).all()
    assert matrix_TJ[-1, 0] == pytest.approx(right_TN[-1, group_N == 0].mean())
    sizes = np.array([(group_N == group).sum() for group in range(steps)])
    assert float(matrix_TJ[-1] @ sizes / sizes.sum()) == pytest.approx(after[-1]), "the last row, weighted by images"


def test_a_resample_is_the_figure_of_the_images_that_were_drawn() -> None:
    rng = np.random.default_rng(1)
    group_N, right_TN = np.arange(40) % 3, (rng.random((3, 40)) < 0.5).astype(float)
    drawn_RN = rng.integers(0, 40, (5, 40))
    times_RN = np.stack([np.bincount(one, minlength=40) for one in drawn_RN]).astype(float)
    found = figures_of(*hits_of(right_TN, group_N, times_RN))
    for row, drawn_N in zip(found, drawn_RN, strict=True):
        after, incremental, forgetting = slow(right_TN[:, drawn_N], group_N[drawn_N])
        np.testing.assert_allclose(row, [*after, incremental, forgetting], atol=1e-12)


def test_a_group_that_was_better_before_is_forgotten_and_one_that_became_better_is_not() -> None:
    """Ten images of each of three groups. Group 1: 1.0, 0.4, 0.1; group 2: 0.2, then 0.7; group 3 is new."""
    rights = [[10, 0, 0], [4, 2, 0], [1, 7, 9]]
    right_TN = np.array([[number < count for count in row for number in range(10)] for row in rights], float)
    found = figures_of(*hits_of(right_TN, np.repeat([0, 1, 2], 10), np.ones((1, 30))))[0]
    np.testing.assert_allclose(found, [1.0, 0.3, 17 / 30, (1.0 + 0.3 + 17 / 30) / 3, ((1.0 - 0.1) + (0.2 - 0.7)) / 2])


def test_a_group_without_images_counts_nowhere() -> None:
    right_TN = np.array([[1.0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]])
    group_N = np.array([0, 0, 2, 2])
    counts = hits_of(right_TN, group_N, np.ones((1, 4)))
    np.testing.assert_allclose(figures_of(*counts)[0], [1.0, 0.5, 0.5, 2 / 3, 0.5])
    assert np.isnan(matrix_of(*counts)[0][:, 1]).all()
