"""Soft targets, which Token-CutMix and Token-Mixup mix together with the samples.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["soft_cross_entropy", "soft_targets"]


def soft_targets(labels_B: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Return float32 [B, C]: 1 - s + s/C at the label and s/C elsewhere, where s is the smoothing. A label of -1 (none) gives zeros."""
    off = smoothing / max(1, classes)  # without classes there are no targets: [B, 0]
    hit_BC = labels_B[:, None] == torch.arange(classes, device=labels_B.device)
    targets_BC = torch.where(hit_BC, 1.0 - smoothing + off, off)
    return targets_BC.mul_((labels_B >= 0)[:, None])


def soft_cross_entropy(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    """Return the cross-entropy [B] of soft targets, the sum of -t log softmax(logits) over classes. Targets get no gradient."""
    if torch.compiler.is_compiling():  # a compiler fuses these steps by itself
        return -(targets_BC * logits_BC.log_softmax(dim=1)).sum(dim=1)
    return cast(Tensor, _SoftCrossEntropy.apply(logits_BC, targets_BC))  # type: ignore[no-untyped-call]


class _SoftCrossEntropy(torch.autograd.Function):
    """Beside logits and targets a step holds one tensor [B, C] at a time: with 21,841 classes torch's own steps take twice the memory."""

    @staticmethod
    def forward(ctx: Any, logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
        log_sums_B, totals_B = logits_BC.logsumexp(dim=1), targets_BC.sum(dim=1)
        ctx.save_for_backward(logits_BC, targets_BC, log_sums_B, totals_B)
        chosen_B = torch.bmm(targets_BC[:, None], logits_BC[:, :, None]).flatten()
        return log_sums_B * totals_B - chosen_B

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None]:
        logits_BC, targets_BC, log_sums_B, totals_B = ctx.saved_tensors
        grad_BC = (logits_BC - log_sums_B[:, None]).exp_().mul_(totals_B[:, None]).sub_(targets_BC).mul_(grad_B[:, None])
        return grad_BC, None
