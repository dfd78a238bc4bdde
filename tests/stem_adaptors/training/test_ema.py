"""Averaged weights against a loop written from the formula."""

from __future__ import annotations

import torch
from torch import nn

from tokenshards.stem_adaptors.training.ema import AveragedWeights


def test_the_average_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = AveragedWeights(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.tensors["weight"], expected)


def test_counters_are_copied_and_not_averaged() -> None:
    model = nn.BatchNorm1d(2)
    average = AveragedWeights(model, 0.99)
    model(torch.randn(4, 2))
    model(torch.randn(4, 2))
    average.update(0)
    assert int(average.tensors["num_batches_tracked"]) == 2


def test_a_model_has_the_average_inside_the_block_only() -> None:
    model = nn.Linear(2, 2)
    own = model.weight.detach().clone()
    average = AveragedWeights(model, 0.5)
    average.tensors["weight"].zero_()
    with average.applied_to(model):
        assert torch.count_nonzero(model.weight) == 0
    assert torch.equal(model.weight, own)
