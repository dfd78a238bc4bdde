"""A chain: one classifier that meets the groups one after another, and the names under which its steps are kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.stem_adaptors.comparison.timed_run import RECIPE

__all__ = ["Chain"]

RULES = 1
"""Version of the rules for groups, quotas and shares of a batch. Results of other rules are not taken."""
_PLACES = ("train_url", "val_url", "memory_url")
_OF_LENGTH = ("classes", "until")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What to train, and where its results are kept. JSON can hold all fields."""

    data: str
    """Digest of the datasets to learn from and to measure on: results of other data are not taken."""
    memory_data: str = ""
    """Digest of the dataset from which images of the memory come back; empty where it is the one to learn from."""
    classes: tuple[str, ...]
    """All classes, in any order."""
    steps: int
    until: int
    """Steps to train: all of them, or the first alone, which all chains of a dataset and a seed share."""
    images: int | None
    """That the memory holds; None for all."""
    choice: str
    seed: int
    step_seconds: float
    device: str = "cpu"
    train_url: str
    val_url: str
    memory_url: str

    @property
    def first(self) -> Chain:
        """The chain that ends after the first step, when there is no memory yet."""
        return replace(self, until=1, images=0, choice="", memory_data="", memory_url=self.train_url)

    @property
    def seconds(self) -> float:
        """Of all steps that are its own."""
        return self.step_seconds * max(1, self.until - 1)

    @property
    def key(self) -> str:
        """A digest of everything that the results depend on: the digests of data stand for their places."""
        return _digest({**self._settings(), "until": self.until})

    @property
    def path(self) -> str:
        """Where the result lies in the store."""
        return f"chains/{self.key}.json"

    def step_key(self, step: int, before: str) -> str:
        """Return the digest of everything that the result of a step depends on. `before`: digest of the result of the step before."""
        return _digest({**(self if step else self.first)._settings(), "step": step, "before": before})

    def _settings(self) -> dict[str, Any]:
        own = {name: value for name, value in asdict(self).items() if name not in (*_PLACES, *_OF_LENGTH)}
        if self.images in (None, 0):
            own["choice"] = ""  # nothing is chosen
        return {**own, "classes": sorted(self.classes), "recipe": RECIPE, "rules": RULES}


def _digest(value: dict[str, Any]) -> str:
    return sha256_hex(json.dumps(value, sort_keys=True).encode())[:16]
