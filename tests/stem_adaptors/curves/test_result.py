"""Rows of a curve against a slow reference: the same images on every side, whatever the order of each, and paired differences."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.stem_adaptors.curves.curves import IMAGES, SEEDS, curve_of, point, right
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.comparison.paired import RESAMPLES
from tokenshards.stem_adaptors.curves.curve_config import FEWER, JPEG, TOKENS
from tokenshards.stem_adaptors.curves.measured_images import shared_places
from tokenshards.stem_adaptors.curves.result import Point

SMALL, LARGE = point(TOKENS, 1000, 10, 100.0), point(TOKENS, 5000, 50, 100.0)
ABSENT = Point(side=FEWER, budget=1000, absent="room for 0 files of 4,000 bytes, not for an image")
FILES, JPEGS, SMALL_JPEGS = (
    point(FEWER, 5000, 2, 2500.0),
    point(JPEG, 5000, 60, 80.0, detail="8 px, quality 3"),
    point(JPEG, 1000, 59, 15.0),
)
POINTS = [SMALL, ABSENT, SMALL_JPEGS, LARGE, FILES, JPEGS]
RIGHT = {one: right(share, seed) for seed, (one, share) in enumerate(
    {SMALL: 0.5, SMALL_JPEGS: 0.3, LARGE: 0.8, FILES: 0.3, JPEGS: 0.5}.items()
)}  # fmt: skip


def resamples(rows: list[np.ndarray]) -> list[np.ndarray]:
    """The bootstrap of `paired.py`, said slowly: all sides share the images and seeds of a draw."""
    rng, means = np.random.default_rng(0), [[] for _ in rows]
    for _ in range(RESAMPLES):
        images, seeds = rng.integers(0, IMAGES, IMAGES), rng.integers(0, SEEDS, SEEDS)
        for found, right_SN in zip(means, rows, strict=True):
            found.append(right_SN[np.ix_(seeds, images)].mean())
    return [np.array(found) for found in means]


def bounds(draws: np.ndarray) -> list[float]:
    return [round(float(np.percentile(draws, share)), 4) for share in (2.5, 97.5)]


def test_rows_have_means_intervals_and_the_lead_over_the_better_image_side() -> None:
    found = curve_of(POINTS, RIGHT)
    assert [(row.side, row.budget) for row in found.rows] == [(one.side, one.budget) for one in POINTS]
    assert (found.measured, found.tokenizer_bytes, found.seeds) == (IMAGES, 8400, SEEDS)
    present = [one for one in POINTS if one.runs]
    draws = dict(zip(present, resamples([RIGHT[one] for one in present]), strict=True))
    rows = dict(zip(POINTS, found.rows, strict=True))
    for one in present:
        row = rows[one]
        assert row.top1 is not None and row.top1.value == round(RIGHT[one].mean(), 4)
        assert [row.top1.low, row.top1.high] == pytest.approx(bounds(draws[one]), abs=2e-4)
        assert row.per_seed == tuple(round(float(seed.mean()), 5) for seed in RIGHT[one]) and row.epochs == 3.5
        assert row.stored_bytes == one.images * one.bytes_per_image
    for one, other in ((SMALL, SMALL_JPEGS), (LARGE, JPEGS)):
        over = rows[one].over_images
        assert over is not None and over.value == round(RIGHT[one].mean() - RIGHT[other].mean(), 4)
        assert [over.low, over.high] == pytest.approx(bounds(draws[one] - draws[other]), abs=2e-4)
        assert rows[one].best_images == JPEG
    assert [row.side for row in found.rows if row.over_images is not None] == [TOKENS, TOKENS]
    assert (rows[ABSENT].top1, rows[ABSENT].per_seed, rows[ABSENT].epochs, rows[ABSENT].absent) == (None, (), None, ABSENT.absent)


def test_tokens_alone_have_no_difference() -> None:
    found = curve_of([SMALL, LARGE], RIGHT)
    assert [row.over_images for row in found.rows] == [None, None] and found.rows[0].best_images == ""


def test_images_of_sides_meet_whatever_their_order() -> None:
    """The files are right on the same images, which their validation set has in another order, beside one that tokens lack."""
    tokens = [f"image {number}" for number in range(IMAGES)]
    order = np.random.default_rng(5).permutation(IMAGES)
    files = [tokens[place] for place in order] + ["another"]
    places = shared_places({TOKENS: tokens, FEWER: files})
    assert [files[place] for place in places[FEWER]] == tokens and places[TOKENS].tolist() == list(range(IMAGES))
    moved = np.concatenate([RIGHT[LARGE][:, order], np.zeros((SEEDS, 1))], axis=1)
    found = curve_of([LARGE, FILES], {LARGE: RIGHT[LARGE], FILES: moved}, fewer_images=places[FEWER])
    over = found.rows[0].over_images
    assert found.rows[1].top1 == found.rows[0].top1 and over is not None and (over.value, over.low, over.high) == (0, 0, 0)
    part = shared_places({TOKENS: tokens, FEWER: ["image 7", "image 3"]})
    assert (part[TOKENS].tolist(), part[FEWER].tolist()) == ([3, 7], [1, 0])


def test_sides_without_a_common_image_are_refused() -> None:
    with pytest.raises(ConfigError, match="VAL and --val-images have no image of one name: VAL has 'a.jpg', --val-images 'val/a.jpg'"):
        shared_places({TOKENS: ["a.jpg"], FEWER: ["val/a.jpg"]})


def test_a_curve_survives_json_and_shows_its_budgets() -> None:
    found = curve_of(POINTS, RIGHT)
    again = json.loads(json.dumps(found.to_json()))
    assert again["rows"][3]["over_images"]["value"] == found.rows[3].over_images.value  # type: ignore[union-attr]
    assert repr(found).startswith("Curve(out='") and "budgets=[1000, 5000]" in repr(found) and len(repr(found)) < 300
