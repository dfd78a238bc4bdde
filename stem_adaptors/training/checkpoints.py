"""Checkpoints of a training and files of its best weights, as objects of `tokenshards.pipeline.storage.tensor_file`.

A checkpoint holds everything that a step depends on: weights, optimiser, averaged weights, gradient scaler, the loader's state and the
sums of the epoch so far. Random numbers are keyed by the step, so there is no generator to save.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError, CorruptObjectError
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.storage.tensor_file import load_tensors, save_tensors

__all__ = [
    "Checkpoint",
    "copied_tensors",
    "load_model",
    "load_optimizer",
    "optimizer_tensors",
    "read_checkpoint",
    "read_weights",
    "require_finite",
    "write_checkpoint",
    "write_weights",
]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a training between two steps. Tensors are grouped by their owner."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the epoch so far."""
    state: dict[str, Any]
    """Plain JSON: steps done, loader state, best result, gradient scaler."""

    def copied(self) -> Checkpoint:
        """Return a checkpoint whose tensors are copies in the memory of the CPU."""
        groups = {name: copied_tensors(getattr(self, name)) for name in ("model", "optimizer", "average", "counts")}
        return replace(self, state=copy.deepcopy(self.state), **groups)


def copied_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in the memory of the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's per-parameter tensors as `index.name`."""
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimiser the tensors of `optimizer_tensors`. Groups and rates come from the configuration, not from the tensors."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_checkpoint(store: Store, path: str, checkpoint: Checkpoint) -> None:
    """Publish a whole checkpoint at once: a crash leaves the one before."""
    tensors = {}
    for group in ("model", "optimizer", "average", "counts"):
        tensors.update({f"{group}/{name}": tensor for name, tensor in getattr(checkpoint, group).items()})
    save_tensors(store, path, tensors, checkpoint.state)


def read_checkpoint(store: Store, path: str) -> Checkpoint:
    """Read a checkpoint; raises MissingObjectError, CorruptObjectError, FormatVersionError."""
    tensors, state = load_tensors(store, path)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "counts": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return Checkpoint(**{name: groups[name] for name in ("model", "optimizer", "average", "counts")}, state=state)


def write_weights(store: Store, path: str, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Publish weights alone, with a few facts about them as JSON (`state`)."""
    save_tensors(store, path, weights, state)


def read_weights(store: Store, path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the JSON of `write_weights`, or of a whole checkpoint."""
    tensors, state = load_tensors(store, path)
    own = {key.removeprefix("model/"): tensor for key, tensor in tensors.items() if key.startswith("model/")}
    return own or tensors, state


def load_model(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Give a model its weights. CorruptObjectError names the weights that do not fit; ConfigError a weight that is not finite."""
    require_finite(weights, where)
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise CorruptObjectError(where, f"these weights do not fit the model of run.json ({str(error).splitlines()[-1].strip()})") from None


def require_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise ConfigError naming the weights that hold NaN or an infinite number: a model with them answers, but its answers mean nothing."""
    bad = {name: count for name, tensor in weights.items() if (count := int((~_widened(tensor).isfinite()).sum()))}
    if bad:
        first = ", ".join(f"{name} ({count} of {weights[name].numel()})" for name, count in list(bad.items())[:4])
        raise ConfigError(
            f"{where}: {len(bad)} of the {len(weights)} weights hold numbers that are not finite: {first}. Give weights from before the "
            "training went wrong"
        )


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor  # torch cannot ask float8 for NaN
