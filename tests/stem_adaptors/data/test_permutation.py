"""Computed permutations: bijections of any size, the same for ever, and as even as a shuffle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.stem_adaptors.data.permutation import Permutation


@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_every_size_is_a_bijection(size: int, key: int) -> None:
    images = Permutation(size, key)(np.arange(size))
    assert images.dtype == np.int64
    np.testing.assert_array_equal(np.sort(images), np.arange(size))


@given(size=st.integers(1, 2**61), key=st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_large_sizes_need_no_memory_and_do_not_collide(size: int, key: int) -> None:
    positions = np.unique(np.linspace(0, size - 1, 100).astype(np.int64).clip(0, size - 1))
    images = Permutation(size, key)(positions)
    assert 0 <= images.min() and images.max() < size and len(np.unique(images)) == len(positions)


def test_any_part_in_any_order_gives_the_same_images() -> None:
    permutation = Permutation(70_001, 7)
    whole = permutation(np.arange(70_001))
    some = np.random.default_rng(0).permutation(70_001)[:999]
    np.testing.assert_array_equal(permutation(some), whole[some])


def test_images_never_change_between_versions() -> None:
    # A state saved by one version must mean the same samples in the next.
    assert Permutation(10, 1)(np.arange(10)).tolist() == [7, 5, 6, 4, 3, 9, 1, 0, 2, 8]
    assert Permutation(1_281_167, 2**63 + 5)(np.array([0, 1, 2, 1_281_166])).tolist() == [1000114, 742267, 387804, 1063597]


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13])
def test_small_sizes_are_even_over_keys(size: int) -> None:
    keys = 1500
    places, steps = np.zeros((size, size)), np.zeros(size)
    for key in range(keys):
        images = Permutation(size, key * 7919 + 13)(np.arange(size))
        places[np.arange(size), images] += 1
        steps += np.bincount((images[1:] - images[:-1]) % size, minlength=size)
    # Chi-square over its degrees of freedom is about 1 for a fair shuffle; a network of 2 rounds is above 50.
    expected = keys / size
    assert ((places - expected) ** 2 / expected).sum() / (size - 1) ** 2 < 4
    if size > 2:
        assert ((steps[1:] - keys) ** 2 / keys).sum() / (size - 2) < 8


def test_neighbours_and_keys_are_unrelated() -> None:
    size = 100_000
    images = Permutation(size, 3)(np.arange(size)) / size
    other = Permutation(size, 4)(np.arange(size)) / size
    for left, right in ((images[:-1], images[1:]), (images, np.arange(size)), (images, other)):
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.015


def test_positions_outside_are_refused() -> None:
    for bad in ([-1], [0, 5]):
        with pytest.raises(IndexError, match="expected 0 to 4"):
            Permutation(5, 0)(np.array(bad))
    assert Permutation(5, 0)(np.zeros(0, np.int64)).size == 0
