"""Groups of classes: each class once, in parts of nearly one size, in an order that the seed alone decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.continual.class_groups import class_groups


@given(count=st.integers(2, 40), steps=st.integers(2, 40), seed=st.integers(0, 5))
def test_every_class_comes_once_in_groups_of_nearly_one_size(count: int, steps: int, seed: int) -> None:
    names = [f"class {number}" for number in range(count)]
    if steps > count:
        with pytest.raises(ConfigError, match=f"--steps is {steps}; expected at most {count}, a class of DATA for each step"):
            class_groups(names, steps, seed)
        return
    found = class_groups(names, steps, seed)
    assert sorted(found.names) == sorted(names) and max(found.sizes) - min(found.sizes) <= 1 and len(found.sizes) == steps
    parts = [found.names_of(step) for step in range(steps)]
    assert sum(parts, ()) == found.names and [len(part) for part in parts] == list(found.sizes)
    assert [found.seen(step) for step in range(-1, steps)] == [sum(found.sizes[:done]) for done in range(steps + 1)]
    assert [step for step, part in enumerate(parts) for _ in part] == list(found.group_of)


def test_the_order_belongs_to_the_seed_and_the_names() -> None:
    names = ["cat", "dog", "owl", "fox", "elk", "bee"]
    orders = [class_groups(names, 3, seed).names for seed in range(8)]
    assert len(set(orders)) > 5 and class_groups(names[::-1], 3, 0).names == orders[0], "not to the order of the class table"
    assert class_groups([3, 1, 2], 3, 0).names == class_groups(["1", "2", "3"], 3, 0).names, "a number is its text"
