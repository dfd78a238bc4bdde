"""Tokens meet the files of their own bytes, and differences are paired over images and seeds."""

from __future__ import annotations

import json

import numpy as np

from tests.stem_adaptors.comparison.results import IMAGES, comparison_of, side
from tokenshards.stem_adaptors.comparison.comparison import _grouped
from tokenshards.stem_adaptors.comparison.paired import interval, resampled


def right(share: float, seed: int = 0) -> np.ndarray:
    """Two seeds."""
    return (np.random.default_rng(seed).random((2, IMAGES)) < share).astype(float)


SIDES = [
    side("small", stored_bytes=20.0),
    side("large", stored_bytes=50.0),
    side("jpeg:20", "jpeg", budget=20.0, stored_bytes=19.0),
    side("webp:20", "webp", budget=20.0, place="", absent="no resolution gets files down to 20 bytes"),
    side("jpeg:52", "jpeg", budget=52.0, stored_bytes=51.0),
    side("webp:52", "webp", budget=52.0, stored_bytes=50.0),
    side("pixels", "pixels"),
]
RIGHT = {f"sides/{name}": right(share, seed) for seed, (name, share) in enumerate(
    {"small": 0.5, "large": 0.8, "jpeg:20": 0.3, "jpeg:52": 0.4, "webp:52": 0.6, "pixels": 0.7}.items()
)}  # fmt: skip


def test_tokens_meet_the_better_file_of_the_next_larger_budget() -> None:
    found = comparison_of(SIDES, RIGHT)
    rows = {row.side.name: row for row in found.rows}
    assert [row.side.name for row in found.rows] == [one.name for one in SIDES], "in the order of the sides"
    assert {name: row.best_file for name, row in rows.items() if row.best_file} == {"small": "jpeg:20", "large": "webp:52"}
    over = rows["large"].over_files
    assert over is not None and over.value == round(RIGHT["sides/large"].mean() - RIGHT["sides/webp:52"].mean(), 4)
    means = resampled(RIGHT)
    assert [over.low, over.high] == interval(means["sides/large"] - means["sides/webp:52"])
    assert [name for name, row in rows.items() if row.over_files is None] == ["jpeg:20", "webp:20", "jpeg:52", "webp:52", "pixels"]
    assert rows["webp:20"].top1 is None and rows["webp:20"].probe is None


def test_a_side_that_is_right_where_the_file_is_and_once_more_has_a_narrow_lead() -> None:
    """Unpaired, the interval of 40 images would reach below zero."""
    file = right(0.5)
    tokens = file.copy()
    tokens[:, np.flatnonzero(~file.any(axis=0))[:6]] = 1
    found = comparison_of(
        [side("tokens", stored_bytes=9.0), side("jpeg:9", "jpeg", budget=9.0)], {"sides/tokens": tokens, "sides/jpeg:9": file}
    )
    over = found.rows[0].over_files
    assert over is not None and over.value == 0.15 and over.low > 0


def test_each_seed_is_told_in_its_order_and_epochs_are_their_mean() -> None:
    (row,) = comparison_of([side("small", stored_bytes=20.0)], {"sides/small": np.stack([np.zeros(IMAGES), np.ones(IMAGES)])}).rows
    assert (row.per_seed, row.epochs) == ((0.0, 1.0), 3.5)
    assert row.top1 is not None and (row.top1.value, row.top1.low, row.top1.high) == (0.5, 0.0, 1.0)
    assert row.over_files is None and row.best_file == ""


def test_one_file_may_serve_two_budgets() -> None:
    """The sides share a place, and so their trainings and their probe."""
    sides = [side(name, "jpeg", place="sides/one", budget=budget) for name, budget in (("jpeg:20", 20.0), ("jpeg:25", 25.0))]
    tokens = [side(name, stored_bytes=bytes_) for name, bytes_ in (("a", 20.0), ("b", 25.0))]
    trained = {"sides/a": right(0.5, 1), "sides/b": right(0.5, 2), "sides/one": right(0.4)}
    found = comparison_of([*tokens, *sides], trained, {"sides/one": 0.25})
    assert [row.best_file for row in found.rows] == ["jpeg:20", "jpeg:25", "", ""]
    assert found.rows[2].top1 == found.rows[3].top1 is not None and [row.probe for row in found.rows] == [None, None, 0.25, 0.25]


def test_without_trainings_the_probe_is_left() -> None:
    found = comparison_of(SIDES[:1], {}, {"sides/small": 0.5})
    assert (found.rows[0].probe, found.rows[0].top1, found.rows[0].per_seed, found.measured) == (0.5, None, (), IMAGES)


def test_a_result_survives_json_and_shows_its_sides() -> None:
    found = comparison_of(SIDES, RIGHT)
    again = json.loads(json.dumps(found.to_json()))
    assert again["rows"][0]["over_files"]["value"] == found.rows[0].over_files.value  # type: ignore[union-attr]
    assert repr(found).startswith("Comparison(out='") and "'small'" in repr(found) and len(repr(found)) < 300


def test_equal_bytes_make_one_group_of_the_largest() -> None:
    assert list(_grouped([50.0, 20.0, 52.4, 21.1, 52.6])) == [20.0, 21.1, 52.4, 52.6]
    assert list(_grouped([20.0, 21.0])) == [21.0] and list(_grouped([])) == []
    assert list(_grouped([100.0, 104.0, 108.0])) == [104.0, 108.0], "a chain of small steps is no group"
