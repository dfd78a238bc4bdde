"""Soft targets, which Token-CutMix and Token-Mixup mix together with the samples.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["soft_targets"]


def soft_targets(labels_B: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Return float32 [B, C]: 1 - s + s/C at the label and s/C elsewhere, where s is the smoothing. A label of -1 (none) gives zeros."""
    off = smoothing / classes
    hit_BC = labels_B[:, None] == torch.arange(classes, device=labels_B.device)
    targets_BC = torch.where(hit_BC, 1.0 - smoothing + off, off)
    return targets_BC * (labels_B >= 0)[:, None]
