"""An exponential moving average of a model's weights, evaluated beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["AveragedWeights"]


class AveragedWeights:
    """Keeps `average = d * average + (1 - d) * weight` over steps, of parameters and of buffers of floats; other buffers are copied.

    d grows with the steps as min(decay, (1 + step) / (10 + step)), so that short runs do not keep their first weights. torch's
    `swa_utils.AveragedModel` has another first step (it takes the weights whole), copies the module beside its weights, and averages
    buffers of whole numbers or none.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        live = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in live.items()}
        floats = [name for name, tensor in live.items() if tensor.is_floating_point()]
        # The tensors of a state dict are the model's own memory, so they are asked for once: a step is two operations on lists.
        self._averaged = [self.tensors[name] for name in floats], [live[name] for name in floats]
        self._copied = [(self.tensors[name], live[name]) for name in live.keys() - set(floats)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the model's weights after step number `step`, counted from 0."""
        torch._foreach_lerp_(*self._averaged, 1.0 - min(self.decay, (1 + step) / (10 + step)))
        for kept, tensor in self._copied:
            kept.copy_(tensor)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up the average that a checkpoint holds."""
        for name, kept in self.tensors.items():
            kept.copy_(tensors[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the averaged weights inside the block."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            model.load_state_dict(own)
