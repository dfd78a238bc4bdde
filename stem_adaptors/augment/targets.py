"""Soft targets, which Token-CutMix and Token-Mixup mix together with the samples.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["smoothed_cross_entropy", "soft_cross_entropy", "soft_targets"]


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


def smoothed_cross_entropy(logits_BC: Tensor, labels_B: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy [B] of targets that `soft_targets` would make, without making them, and logsumexp(logits) [B].

    The second has no gradient.
    """
    if torch.compiler.is_compiling():  # a compiler fuses these steps by itself
        logs_BC = logits_BC.log_softmax(dim=1)
        loss_B = -(1 - smoothing) * logs_BC.gather(1, labels_B[:, None])[:, 0]
        loss_B = loss_B - smoothing * logs_BC.mean(dim=1) if smoothing else loss_B
        return loss_B, logits_BC.detach().logsumexp(dim=1)
    loss_B, log_sums_B = _SmoothedCrossEntropy.apply(logits_BC, labels_B, smoothing)  # type: ignore[no-untyped-call]
    return loss_B, log_sums_B


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Beside the logits the backward pass holds one tensor [B, C]; torch's log_softmax and its gradients are three."""

    @staticmethod
    def forward(ctx: Any, logits_BC: Tensor, labels_B: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        log_sums_B = logits_BC.logsumexp(dim=1)
        ctx.save_for_backward(logits_BC, labels_B, log_sums_B)
        ctx.smoothing = smoothing
        ctx.mark_non_differentiable(log_sums_B)
        chosen_B = (1 - smoothing) * logits_BC.gather(1, labels_B[:, None])[:, 0]
        return log_sums_B - (chosen_B + smoothing * logits_BC.mean(dim=1) if smoothing else chosen_B), log_sums_B

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        logits_BC, labels_B, log_sums_B = ctx.saved_tensors
        grad_BC = (logits_BC - log_sums_B[:, None]).exp_()
        if ctx.smoothing:
            grad_BC.sub_(ctx.smoothing / logits_BC.shape[1])
        shares_B1 = torch.full_like(grad_B, ctx.smoothing - 1)[:, None]
        grad_BC.scatter_add_(1, labels_B[:, None], shares_B1).mul_(grad_B[:, None])
        return grad_BC, None, None
