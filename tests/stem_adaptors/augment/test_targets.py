"""Soft targets against the definition, number by number."""

from __future__ import annotations

import pytest
import torch

from tokenshards.stem_adaptors.augment import soft_targets


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
