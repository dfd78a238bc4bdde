"""The classes in the order in which they come, and the groups in which they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenshards.pipeline.canonical import keyed_hash64
from tokenshards.pipeline.errors import ConfigError

__all__ = ["ClassGroups", "class_groups"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassGroups:
    """A group of classes for each step. JSON can hold all fields."""

    names: tuple[str, ...]
    """All classes in the order in which they come; the place of a class here is its label in training."""
    sizes: tuple[int, ...]
    """Classes of each group."""

    def seen(self, step: int) -> int:
        """Return how many classes have come after step `step`, counted from 0; 0 for step -1."""
        return sum(self.sizes[: step + 1])

    def names_of(self, step: int) -> tuple[str, ...]:
        """Return the classes that come in a step."""
        return self.names[self.seen(step - 1) : self.seen(step)]

    @property
    def group_of(self) -> tuple[int, ...]:
        """The step in which each class of `names` comes."""
        return tuple(step for step, size in enumerate(self.sizes) for _ in range(size))


def class_groups(classes: Sequence[int | str], steps: int, seed: int) -> ClassGroups:
    """Return the groups of a seed: classes in the order of a hash of seed and name, in parts whose sizes differ by at most one.

    Raises ConfigError where there are fewer classes than steps.
    """
    if steps > len(classes):
        raise ConfigError(f"--steps is {steps}; expected at most {len(classes)}, a class of DATA for each step. Give fewer --steps")
    names = sorted(map(str, classes), key=lambda name: (keyed_hash64(f"class order {seed}", name), name))
    sizes = tuple(len(classes) // steps + (step < len(classes) % steps) for step in range(steps))
    return ClassGroups(names=tuple(names), sizes=sizes)
