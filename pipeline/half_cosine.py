"""The falling part of a learning rate schedule: half a cosine, for the training of tokenizers and of classifiers."""

from __future__ import annotations

import math

__all__ = ["half_cosine"]


def half_cosine(progress: float) -> float:
    """Return the factor on the base rate: half a cosine from 1 at progress 0 to 0 at progress 1, then 0."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
