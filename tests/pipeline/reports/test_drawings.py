from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.optional_packages import install_hint
from tokenshards.pipeline.reports.drawings import GAP, LINE_HEIGHT, image_grid, plot_usage, side_by_side, usage_text_histogram

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def flat(colour: tuple[int, int, int], height: int = 100, width: int = 100) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_images_stand_in_reading_order() -> None:
    image = np.asarray(image_grid([flat(RED), flat(GREEN), flat(BLUE)], columns=2))
    step = 100 + GAP
    assert image.shape == (GAP + 2 * step, GAP + 2 * step, 3)
    assert [tuple(image[GAP + y * step + 50, GAP + x * step + 50]) for y, x in ((0, 0), (0, 1), (1, 0))] == [RED, GREEN, BLUE]
    assert tuple(image[GAP + step + 50, GAP + step + 50]) == (255, 255, 255)


def test_small_images_are_enlarged_without_blur() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    image = np.asarray(image_grid([pixels]))
    shown = image[GAP : GAP + 96, GAP : GAP + 120]
    assert np.array_equal(shown[1::3, 1::3], pixels)


def test_captions_are_drawn_below_and_kept_inside() -> None:
    plain = image_grid([flat(RED), flat(GREEN)])
    named = image_grid([flat(RED), flat(GREEN)], ["a", "a very long path " * 20 + "\nend"])
    assert named.height == plain.height + LINE_HEIGHT and named.width == plain.width
    text = np.asarray(named)[GAP + 100 :]
    dark = np.flatnonzero((text < 128).all(axis=2).any(axis=0))
    assert dark.min() < GAP + 20 and GAP + 190 < dark.max() < named.width - GAP, "text fills its cell and does not leave it"
    assert not (text[:, GAP + 100 : 2 * GAP + 98] < 128).any(), "nothing between the cells"


def test_pairs_stand_beside_each_other() -> None:
    image = np.asarray(side_by_side([flat(RED), flat(GREEN)], [flat(BLUE), flat(BLUE)], ["one", "two"], columns=1))
    step_y = 100 + GAP + LINE_HEIGHT
    centres = [tuple(image[GAP + 50 + y * step_y, GAP + 50 + x * (100 + GAP)]) for y in (0, 1) for x in (0, 1)]
    assert centres == [RED, BLUE, GREEN, BLUE]


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ConfigError, match="0 images"):
        image_grid([])
    with pytest.raises(ConfigError, match="1 captions for 2 images"):
        image_grid([flat(RED)] * 2, ["x"])
    with pytest.raises(ConfigError, match="2 originals and 1 reconstructions"):
        side_by_side([flat(RED)] * 2, [flat(RED)])


def test_text_histogram() -> None:
    assert usage_text_histogram(np.array([16, 8, 1, 0]), height=2).splitlines() == ["█   ", "██▁ ", "0  3  highest 16"]


def test_text_histogram_joins_codes_and_keeps_its_size() -> None:
    lines = usage_text_histogram(np.arange(1000), width=50, height=5).splitlines()
    assert [len(line) for line in lines[:-1]] == [50] * 5
    assert lines[-1].split() == ["0", "999", "highest", "990"]
    assert [row[-1] for row in lines[:-1]] == ["█"] * 5 and lines[0][0] == " "
    assert usage_text_histogram(np.zeros(3, int), height=1).splitlines()[0] == "   "
    assert usage_text_histogram(np.array([4]), height=1).splitlines() == ["█", "0  highest 4"]


def test_plot_is_an_image(tmp_path: Path) -> None:
    to = tmp_path / "new" / "usage.png"
    plot_usage([np.arange(256), np.zeros(16, int)], to)
    with Image.open(to) as image:
        assert image.width >= 800 and len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_plot_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"\.png"):
        plot_usage([np.arange(4)], tmp_path / "usage.nonsense")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=re.escape(install_hint("plot"))):
        plot_usage([np.arange(4)], tmp_path / "usage.png")
