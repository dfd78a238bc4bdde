"""Small images with rectangles, and their masks: what the tests of masks learn from, and tokenize."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((0, 0, 0), (220, 30, 30), (40, 60, 230))
"""The colour of each class; 0 is the background."""
BORDER = 255


def write_masked_images(folder: Path, count: int, *, seed: int = 0, side: int = 32, without: tuple[int, ...] = ()) -> None:
    """Write `folder`/images in three class folders and `folder`/masks; images `without` have no mask. The top row is ignored."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        mask_HW = np.zeros((side, side), np.uint8)
        for _ in range(2):
            top, left = rng.integers(0, side - 8, 2)
            height, width = rng.integers(8, 16, 2)
            mask_HW[top : top + height, left : left + width] = rng.integers(1, len(COLOURS))
        pixels = np.array(COLOURS, np.uint8)[mask_HW] + rng.integers(0, 25, (side, side, 3)).astype(np.uint8)
        mask_HW[0] = BORDER
        for kind, array in (("images", pixels), ("masks", mask_HW)):
            place = folder / kind / f"class_{number % 3}"
            place.mkdir(parents=True, exist_ok=True)
            if kind == "images" or number not in without:
                Image.fromarray(array).save(place / f"{number:04d}.png")
