"""The replay memory: images of earlier classes, an equal share of each, in a budget of stored bytes.

The rules are those of iCaRL (Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning", algorithms 4 and 5): a class
has a list of images, best first, made when the class is new. As more classes come, each list is cut to a shorter prefix of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ReplayMemory", "quotas"]


def quotas(images: int, classes: int) -> tuple[int, ...]:
    """Return how many of so many images each class may keep, in the order in which the classes came: `images` in all.

    The first classes have one more where the shares are not whole. Where more classes come, no class gets more.
    """
    return tuple(max(0, (images - place + classes - 1) // classes) for place in range(classes))


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayMemory:
    """Sample ids of the images that are kept. JSON can hold all fields."""

    ids: tuple[tuple[str, ...], ...] = ()
    """Of each class that has come, in the order in which they came; the best images first."""

    @property
    def images(self) -> int:
        """How many images are kept."""
        return sum(map(len, self.ids))

    def with_classes(self, orders: Sequence[Sequence[str]], images: int) -> ReplayMemory:
        """Return the memory after a group of classes, whose images come in `orders`, best first: at most `images` in all."""
        lists = (*self.ids, *orders)
        shares = quotas(images, len(lists))
        return ReplayMemory(ids=tuple(tuple(ids[:share]) for ids, share in zip(lists, shares, strict=True)))
