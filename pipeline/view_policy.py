"""View policies: how many views of an image are stored, and what each shows. A plan records its policy. Standard library only.

Boxes are (left, top, width, height) in pixels of the source image, after the EXIF rotation if the preprocessing applies it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TypeAlias

from tokenshards.pipeline.canonical import keyed_hash64
from tokenshards.pipeline.errors import ConfigError, FormatError, shorten

__all__ = ["MAX_VIEWS", "ONE_VIEW", "Box", "ViewPolicy", "random_view"]

Box: TypeAlias = tuple[float, float, float, float]

MAX_VIEWS = 64
TEN_CROP_RANGE = 1.1
MAX_TEN_CROP_RANGE = 4.0
MIN_AREA, MAX_ASPECT = 0.25, 4 / 3
"""Limits of a random view: its smallest share of the image's area, and its largest ratio of long to short side."""
TRIES = 10

EXPECTED = f"one, flip, ten-crop, ten-crop:RANGE with a range above 1 and up to {MAX_TEN_CROP_RANGE:g}, or a number from 1 to {MAX_VIEWS}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPolicy:
    """How many views an image has, and of what kind; plan and manifest record `name`."""

    name: str
    kind: str
    """`one`, `flip`, `ten-crop` or `random`."""
    count: int
    detail: float = 1.0
    """Smallest scale of the image, relative to the usual view, at which no view is enlarged; for ten-crop its range."""

    @classmethod
    def parse(cls, text: str) -> ViewPolicy:
        """Return the policy for a name such as `flip`, `ten-crop:1.05` or `8`; `1` means `one`. Raises ConfigError for an unknown name."""
        kind, colon, rest = text.partition(":")
        if text in ("one", "1"):
            return ONE_VIEW
        if text == "flip":
            return cls(name=text, kind=text, count=2)
        if kind == "ten-crop":
            try:
                crop_range = float(rest) if colon else TEN_CROP_RANGE
            except ValueError:
                crop_range = math.nan
            if 1 < crop_range <= MAX_TEN_CROP_RANGE:
                name = kind if crop_range == TEN_CROP_RANGE else f"{kind}:{crop_range!r}"
                return cls(name=name, kind=kind, count=10, detail=crop_range)
        if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_VIEWS:
            return cls.parse(str(int(text))) if text[0] == "0" else cls(name=text, kind="random", count=int(text), detail=_RANDOM_DETAIL)
        raise ConfigError(f"--views is {shorten(text)}; expected {EXPECTED}")

    @classmethod
    def stored(cls, name: str, where: str) -> ViewPolicy:
        """Return the policy that a plan or manifest names; raises FormatError if this version does not know the name."""
        try:
            return cls.parse(name)
        except ConfigError:
            raise FormatError(f"{where}: the view policy is {shorten(name)}; this version knows {EXPECTED}. Upgrade tokenshards") from None


ONE_VIEW = ViewPolicy(name="one", kind="one", count=1)
_RANDOM_DETAIL = math.sqrt(MAX_ASPECT / MIN_AREA)


def random_view(width: int, height: int, *, seed: int, sample_id: str, view: int) -> tuple[Box, bool]:
    """Return a box of whole pixels in an image of `width` x `height`, and whether the view is mirrored.

    The box has 1/4 to all of the area and an aspect ratio of 3/4 to 4/3, drawn as torchvision's RandomResizedCrop does. The random
    numbers come from a hash of seed, sample id and view, so that a repeated job draws the same box.
    """
    draw = random.Random(keyed_hash64(f"views {seed}", f"{view} {sample_id}")).random
    mirrored = draw() < 0.5
    for _ in range(TRIES):
        area = width * height * (MIN_AREA + (1 - MIN_AREA) * draw())
        aspect = math.exp((2 * draw() - 1) * math.log(MAX_ASPECT))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return (int(draw() * (width - box_width + 1)), int(draw() * (height - box_height + 1)), box_width, box_height), mirrored
    # The image is too elongated for such a box: take the largest box of the nearest aspect ratio, in the middle.
    box_width = min(width, max(1, round(height * MAX_ASPECT)))
    box_height = min(height, max(1, round(width * MAX_ASPECT)))
    return ((width - box_width) // 2, (height - box_height) // 2, box_width, box_height), mirrored
