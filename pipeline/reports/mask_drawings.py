"""Masks as colours, and a legend of their class numbers.

Class 0 is black, pixels without a class are grey. The other colours are those that K. L. Kelly ordered so that the first ones differ most
("Twenty-two colors of maximum contrast", 1965), without white, black and grey; then the same again, darker.

Shapes: H height and W width of a mask in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

__all__ = ["class_colours", "mask_caption", "mask_colours", "no_mask", "with_legend"]

Pixels = npt.NDArray[np.uint8]
BLACK, GREY, PALE = (0, 0, 0), (128, 128, 128), (235, 235, 235)
KELLY = (
    (243, 195, 0), (135, 86, 146), (243, 132, 0), (161, 202, 241), (190, 0, 50), (194, 178, 128), (0, 136, 86), (230, 143, 172),
    (0, 103, 165), (249, 147, 121), (96, 78, 151), (246, 166, 0), (179, 68, 108), (220, 211, 0), (136, 45, 23), (141, 182, 0),
    (101, 69, 34), (226, 88, 34), (43, 61, 38),
)  # fmt: skip
DARKER = 0.6
CAPTIONED, LISTED = 6, 64
"""Most class numbers in a caption, and in a legend."""
BOX, LINE, GAP, FONT_SIZE = 12, 18, 6, 12


def class_colours(count: int) -> Pixels:
    """Return the colours [count, 3] of the class numbers from 0 on."""
    numbers = np.arange(max(0, count - 1))
    colours = np.array(KELLY)[numbers % len(KELLY)] * DARKER ** (numbers // len(KELLY))[:, None]
    return np.concatenate([np.array([BLACK]), colours.round()]).astype(np.uint8)[:count]


def mask_colours(mask_HW: npt.NDArray[Any], ignore: int) -> Pixels:
    """Return a mask as colours [H, W, 3]."""
    classes = mask_HW != ignore
    colours = class_colours(int(mask_HW[classes].max(initial=0)) + 1)
    return np.where(classes[..., None], colours[np.where(classes, mask_HW, 0)], np.array(GREY, np.uint8)).astype(np.uint8)


def no_mask(height: int, width: int) -> Pixels:
    """Return what is drawn for an image without a mask."""
    return np.full((height, width, 3), PALE, np.uint8)


def mask_caption(mask_HW: npt.NDArray[Any] | None, ignore: int) -> str:
    """Return the class numbers of a mask, for the line below it."""
    if mask_HW is None:
        return "no mask"
    found = [str(value) for value in np.unique(mask_HW).tolist() if value != ignore]
    if not found:
        return "mask: no class"
    return f"mask: {' '.join(found[:CAPTIONED])}{' …' if len(found) > CAPTIONED else ''}"


def with_legend(drawing: Image.Image, classes: Iterable[int]) -> Image.Image:
    """Return the drawing with the colour of each class number below it, and of pixels without a class."""
    listed = sorted(classes)
    colours = class_colours(max(listed, default=0) + 1)
    entries: list[tuple[str, tuple[int, ...]]] = [(str(number), tuple(colours[number].tolist())) for number in listed[:LISTED]]
    entries += [("…", PALE)] if len(listed) > LISTED else []
    entries.append(("no class", GREY))
    draw, font = ImageDraw.Draw(drawing), ImageFont.load_default(FONT_SIZE)
    places, left, line = [], GAP, 0
    for text, _ in entries:
        width = BOX + 4 + int(draw.textlength(text, font=font)) + 2 * GAP
        if left + width > drawing.width and left > GAP:
            left, line = GAP, line + 1
        places.append((left, drawing.height + line * LINE))
        left += width
    canvas = Image.new("RGB", (drawing.width, drawing.height + (line + 1) * LINE + GAP), "white")
    canvas.paste(drawing, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for (text, colour), (x, y) in zip(entries, places, strict=True):
        draw.rectangle([x, y, x + BOX, y + BOX], fill=colour, outline="dimgray")
        draw.text((x + BOX + 4, y - 1), text, fill="black", font=font)
    return canvas
