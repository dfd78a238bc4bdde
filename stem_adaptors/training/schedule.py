"""The learning rate of a step: linear warm-up, then half a cosine."""

from __future__ import annotations

from tokenshards.pipeline.half_cosine import half_cosine

__all__ = ["learning_rate"]


def learning_rate(step: int, *, total_steps: int, warmup_steps: int, peak: float, floor: float) -> float:
    """Return the rate of step 0 .. total_steps - 1. The rate rises to `peak` over the warm-up, then falls along a cosine to `floor`.

    A pure function of the step, so that a resumed run takes the same rates.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (peak - floor) * half_cosine(progress)
