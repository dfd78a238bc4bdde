"""Images that need no data: smooth random ground with shapes on it and a little noise, in the sizes of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = 8
GREY_EVERY = 25


def draw_images(folder: Path, count: int) -> None:
    """Write `count` JPEGs into class folders; every 25th is grey, as in ImageNet."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class_{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        image = one_image(rng)
        (image.convert("L") if number % GREY_EVERY == 0 else image).save(place / f"image_{number:05d}.jpg", quality=90)


def one_image(rng: np.random.Generator) -> Image.Image:
    """Return an image of 180 to 600 pixels a side."""
    width, height = (int(side) for side in rng.integers(180, 600, 2))
    ground = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(6):
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        box = (left, top, left + int(rng.integers(10, width)), top + int(rng.integers(10, height)))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    pixels = np.asarray(ground).astype(np.int16) + rng.integers(-8, 9, (height, width, 1), np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
