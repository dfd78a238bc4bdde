"""An exponential moving average of a model's weights, which is evaluated beside the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["AveragedWeights"]


class AveragedWeights:
    """Keeps `average = d * average + (1 - d) * weight` over steps, for parameters and float buffers. Other buffers are copied.

    d grows with the steps as min(decay, (1 + step) / (10 + step)), so that the average of a short run does not stay at the first weights.
    torch's `swa_utils.AveragedModel` differs: its first step takes the weights whole, it copies the whole module, and it averages either
    all buffers, those of integers too, or none.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        live = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in live.items()}
        frozen = {name for name, _ in model.named_buffers() if name.startswith("embedding.")}  # a codebook never changes
        floats = [name for name, tensor in live.items() if tensor.is_floating_point() and name not in frozen]
        # The tensors of a state dict are the model's own memory. Asking for them once makes a step two operations on lists of tensors.
        self._averaged = [self.tensors[name] for name in floats], [live[name] for name in floats]
        self._copied = [(self.tensors[name], live[name]) for name in live.keys() - set(floats) - frozen]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the model's weights after step number `step`, counted from 0."""
        torch._foreach_lerp_(*self._averaged, 1.0 - min(self.decay, (1 + step) / (10 + step)))
        for kept, tensor in self._copied:
            kept.copy_(tensor)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue with the average of a checkpoint."""
        for name, kept in self.tensors.items():
            kept.copy_(tensors[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Swap the averaged weights into the model inside the block."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            model.load_state_dict(own)
