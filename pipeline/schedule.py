"""The shape of a learning rate over a training, of tokenizers and classifiers alike."""

from __future__ import annotations

import math

__all__ = ["half_cosine"]


def half_cosine(progress: float) -> float:
    """Return the share of the rate: 1 at progress 0, along half a cosine to 0 at 1, and 0 from there on."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
