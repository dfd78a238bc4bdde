"""Callables of users, fit and unfit: ids are mean brightnesses of cells of 8 x 8 pixels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

SIZE = 32


def brightness(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), 4, 8, 4, 8, 3).mean(axis=(2, 4, 5)).astype(int)


def grey(ids: np.ndarray) -> np.ndarray:
    return np.repeat(ids.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)[..., None], 3, axis=-1)


class Brightness:
    size, vocabulary = SIZE, 256

    def __init__(self, settings: dict[str, Any], file: bytes = b"") -> None:
        self.shift = int(settings.get("shift", 0)) + len(file)
        self.batches: list[int] = []

    def encode(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        ids = (brightness(images) + self.shift) % 256
        images[:] = 0  # they are its own
        return ids

    def decode(self, ids: np.ndarray) -> np.ndarray:
        return grey((ids - self.shift) % 256)


class Levels:
    """Two ids a site, vectors, 3 images at a time, no decoder."""

    size, vocabulary, batch = SIZE, (16, 16), 3

    def __init__(self, settings: dict[str, Any]) -> None:
        self.codebook = [np.arange(16)[:, None] * 16, np.arange(16)[:, None]]

    def encode(self, images: np.ndarray) -> np.ndarray:
        ids = brightness(images).reshape(len(images), 16)
        assert len(images) == 3
        return np.stack([ids // 16, ids % 16], axis=-1).astype(np.uint8)


def unfit(settings: dict[str, Any]) -> Any:
    """Brightness with other attributes, by name."""
    fit = Brightness({})
    made = SimpleNamespace(size=SIZE, vocabulary=256, encode=fit.encode, decode=fit.decode)
    calls = iter(range(100))
    changes: dict[str, Any] = {
        "nothing": None,
        "no encode": SimpleNamespace(size=SIZE, vocabulary=256),
        "size": {"size": "32"},
        "vocabulary": {"vocabulary": 0.5},
        "narrow": {"vocabulary": 9},
        "batch": {"batch": 0},
        "floats": {"encode": lambda images: images.mean(axis=3)},
        "rows": {"encode": lambda images: brightness(images)[:5]},
        "numbers": {"encode": lambda images: 7},
        "raises": {"encode": lambda images: images[:, :, :, 9]},
        "negative": {"encode": lambda images: -1 - brightness(images)},
        "random": {"encode": lambda images: (brightness(images) + next(calls)) % 256},
        "beside": {"encode": lambda images: (brightness(images) + brightness(images).sum(axis=0)) % 256},
        "drawing": {"decode": lambda ids: ids},
        "codebook": {"codebook": np.zeros((5, 2))},
        "codebook of nan": {"codebook": np.full((256, 2), np.nan)},
        "codebook of words": {"codebook": "words"},
    }
    found = changes[settings["what"]]
    if isinstance(found, dict):
        vars(made).update(found)
        return made
    return found


NUMBER = 3
