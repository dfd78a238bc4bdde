"""Masks as colours: one colour for each class, the same in every drawing."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tokenshards.pipeline.reports.mask_drawings import KELLY, class_colours, mask_caption, mask_colours, no_mask, with_legend


def test_colours_are_fixed_and_differ() -> None:
    colours = class_colours(40)
    assert colours[0].tolist() == [0, 0, 0] and tuple(colours[1].tolist()) == KELLY[0]
    assert len({tuple(colour) for colour in colours.tolist()}) == 40
    np.testing.assert_array_equal(class_colours(5), colours[:5])
    assert class_colours(1).tolist() == [[0, 0, 0]] and class_colours(0).shape == (0, 3)
    distances = np.abs(colours[None, :20].astype(int) - colours[:20, None].astype(int)).sum(axis=2) + 999 * np.eye(20, dtype=int)
    assert distances.min() > 20


def test_a_mask_is_drawn_with_grey_where_there_is_no_class() -> None:
    for dtype, ignore in ((np.uint8, 255), (np.uint16, 65535)):
        mask = np.array([[0, 2], [ignore, 1]], dtype)
        assert mask_colours(mask, ignore).tolist() == [[[0, 0, 0], list(KELLY[1])], [[128, 128, 128], list(KELLY[0])]]
        assert mask_colours(np.full((2, 2), ignore, dtype), ignore).tolist() == [[[128, 128, 128]] * 2] * 2
    assert no_mask(2, 3).shape == (2, 3, 3)


def test_captions_name_the_classes() -> None:
    assert mask_caption(np.array([[3, 255], [0, 3]], np.uint8), 255) == "mask: 0 3"
    assert mask_caption(np.arange(9, dtype=np.uint8).reshape(3, 3), 255) == "mask: 0 1 2 3 4 5 …"
    assert mask_caption(np.full((2, 2), 255, np.uint8), 255) == "mask: no class" and mask_caption(None, 255) == "no mask"


def test_the_legend_shows_each_colour_below_the_drawing() -> None:
    drawing = Image.new("RGB", (90, 20), "white")
    found = with_legend(drawing, {0, 1, 2, 7})
    assert found.width == 90 and found.height > 40, "several lines, because all boxes do not fit into one"
    colours = {tuple(colour) for colour in np.asarray(found).reshape(-1, 3).tolist()}
    assert {(0, 0, 0), KELLY[0], KELLY[1], KELLY[6], (128, 128, 128)} <= colours
    assert with_legend(drawing, set(range(200))).height < 900
