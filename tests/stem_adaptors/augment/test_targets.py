"""Soft targets and their loss against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tokenshards.stem_adaptors.augment import smoothed_cross_entropy, soft_cross_entropy, soft_targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_soft_targets(classes: int, smoothing: float) -> None:
    labels = [0, classes - 1, -1, 0]
    targets_BC = soft_targets(torch.tensor(labels), classes, smoothing)
    assert targets_BC.dtype == torch.float32 and targets_BC.shape == (4, classes)
    for row, label in zip(targets_BC.tolist(), labels, strict=True):
        expected = [0.0 if label < 0 else (1 - smoothing) * (name == label) + smoothing / classes for name in range(classes)]
        assert row == pytest.approx(expected)
        assert sum(row) == pytest.approx(float(label >= 0))


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_the_loss_of_soft_targets_and_its_gradient(scale: float) -> None:
    draws = torch.Generator().manual_seed(0)
    logits_BC = scale * torch.randn(6, 11, generator=draws)
    mixed_BC = soft_targets(torch.tensor([0, 3, -1, 10, 5, 5]), 11, 0.1)
    mixed_BC = 0.7 * mixed_BC + 0.3 * mixed_BC.flip(0)
    weights_B = torch.rand(6, generator=draws)
    losses, gradients = [], []
    for loss in (soft_cross_entropy, lambda logits_BC, targets_BC: -(targets_BC * logits_BC.log_softmax(1)).sum(1)):
        leaf_BC = logits_BC.clone().requires_grad_()
        loss_B = loss(leaf_BC, mixed_BC)
        (loss_B * weights_B).sum().backward()
        losses.append(loss_B.detach())
        gradients.append(leaf_BC.grad)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    assert losses[0].dtype == torch.float32


class LargeTensors(TorchDispatchMode):
    """Counts tensors of a size that operations make and do not give back at once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.made = size, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple) else (found,):
            if isinstance(value, torch.Tensor) and value.numel() == self.size:
                self.made.add(value.untyped_storage().data_ptr())
        return found


def test_the_loss_makes_one_tensor_as_large_as_the_logits() -> None:
    logits_BC, targets_BC = torch.randn(4, 4096, requires_grad=True), torch.rand(4, 4096)
    with LargeTensors(4 * 4096) as counted:
        soft_cross_entropy(logits_BC, targets_BC).sum().backward()
    own = counted.made - {logits_BC.data_ptr(), targets_BC.data_ptr()}
    assert len(own) == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_cross_entropy_equals_that_of_soft_targets(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BC = (3 * torch.randn(6, 9, generator=generator)).double().requires_grad_()
    labels_B = torch.tensor([0, 8, 3, 3, 1, 5])
    loss_B, log_sums_B = smoothed_cross_entropy(logits_BC, labels_B, smoothing)
    expected_B = -(soft_targets(labels_B, 9, smoothing).double() * logits_BC.log_softmax(1)).sum(1)
    torch.testing.assert_close(loss_B, expected_B, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_sums_B, logits_BC.logsumexp(1).detach())
    weights_B = torch.arange(1.0, 7.0).double()
    (found,) = torch.autograd.grad((loss_B * weights_B).sum(), logits_BC, retain_graph=True)
    (expected,) = torch.autograd.grad((expected_B * weights_B).sum(), logits_BC)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert not log_sums_B.requires_grad
