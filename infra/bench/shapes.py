"""Images with shapes drawn over photographs, and their masks: what the bench of dense labels learns from.

Classes: 0 background, 1 disc, 2 square, 3 triangle, 4 cross. Colours, sizes, angles and stripes are random, so that nothing but the form
tells the class. Pixels that a shape covers in part, at its border, are to be ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("background", "disc", "square", "triangle", "cross")
IGNORE = 255
MOST_SHAPES = 2
SCALE = 4
"""Shapes are drawn so many times larger, and made smaller, for smooth edges."""

Points = list[tuple[float, float]]


def outline(kind: str, x: float, y: float, radius: float, angle: float) -> Points:
    """Return the corners of a shape around a centre; of a disc those of a polygon that looks like a circle."""
    if kind == "disc":
        turns = [(2 * math.pi * step / 60, 1.0) for step in range(60)]
    elif kind == "cross":
        half = 0.33
        corners = [(1, half), (half, half), (half, 1), (-half, 1), (-half, half), (-1, half)]
        points = corners + [(-px, -py) for px, py in corners]
        turns = [(math.atan2(py, px), math.hypot(px, py)) for px, py in points]
    else:
        count = {"square": 4, "triangle": 3}[kind]
        turns = [(2 * math.pi * step / count, 1.0) for step in range(count)]
    return [(x + radius * far * math.cos(turn + angle), y + radius * far * math.sin(turn + angle)) for turn, far in turns]


def drawn(photo: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return a photo with one or two shapes over it, and its mask of class numbers."""
    size = photo.width
    image, mask = photo.convert("RGB"), np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(1, MOST_SHAPES + 1)):
        number = int(rng.integers(1, len(CLASSES)))
        radius = size * SCALE * rng.uniform(0.2, 0.4)
        x, y = rng.uniform(0.25, 0.75, 2) * size * SCALE
        points = outline(CLASSES[number], x, y, radius, rng.uniform(0, 2 * math.pi))
        large = Image.new("L", (size * SCALE, size * SCALE))
        ImageDraw.Draw(large).polygon(points, fill=255)
        cover = np.asarray(large.resize((size, size), Image.Resampling.BOX), np.float32) / 255
        image = Image.fromarray(painted(np.asarray(image, np.float32), cover, rng))
        mask[cover >= 0.99] = number
        mask[(cover > 0.01) & (cover < 0.99)] = IGNORE
    return image, Image.fromarray(mask)


def painted(image_HWC: np.ndarray, cover_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image with a colour, often striped with a second one, where it is covered."""
    first, second = rng.uniform(0, 255, (2, 3))
    rows, columns = np.indices(cover_HW.shape)
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 16)
    striped = rng.random() < 0.5
    phase = (rows * math.sin(angle) + columns * math.cos(angle)) / period % 1
    colour_HWC = np.where(((phase < 0.5) & striped)[..., None], first, second)
    cover_HW1 = cover_HW[..., None]
    return (image_HWC * (1 - cover_HW1) + colour_HWC * cover_HW1).round().clip(0, 255).astype(np.uint8)


def write_shapes(photos: Iterable[Path], folder: Path, *, size: int, seed: int = 0) -> int:
    """Write `folder`/images and `folder`/masks, one pair for each photo; return how many."""
    count = 0
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True)
    for number, path in enumerate(photos):
        with Image.open(path) as photo:
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            small = photo.convert("RGB").crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        image, mask = drawn(small, np.random.default_rng([seed, number]))
        image.save(folder / "images" / f"{number:05d}.png")
        mask.save(folder / "masks" / f"{number:05d}.png")
        count += 1
    return count
