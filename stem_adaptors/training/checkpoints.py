"""Checkpoints as one safetensors file: tensors, and a JSON header with everything else. Nothing is pickled.

A checkpoint holds all that a step depends on: weights, optimiser, averaged weights, gradient scaler, the loader's state and the sums of
the epoch so far. Random numbers are keyed by the step, so there is no generator to save.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tokenshards.pipeline.canonical import canonical_json
from tokenshards.pipeline.errors import CorruptObjectError, FormatVersionError
from tokenshards.pipeline.storage.store import Store

__all__ = [
    "Checkpoint",
    "load_model",
    "load_optimizer",
    "optimizer_tensors",
    "read_checkpoint",
    "read_weights",
    "write_checkpoint",
    "write_weights",
]

VERSION = 1
_HEADER = "tokenshards.checkpoint"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A training between two steps. Tensors are grouped by what they belong to."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any]
    """Plain JSON: steps done, loader state, best result, gradient scaler."""


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's per-parameter tensors as `index.name`."""
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimiser the tensors of `optimizer_tensors`; its groups and rates come from the configuration."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_checkpoint(store: Store, path: str, checkpoint: Checkpoint) -> None:
    """Publish a checkpoint whole: a crash leaves the one before."""
    tensors = {}
    for group in ("model", "optimizer", "average", "counts"):
        tensors.update({f"{group}/{name}": tensor for name, tensor in getattr(checkpoint, group).items()})
    _write(store, path, tensors, checkpoint.state)


def read_checkpoint(store: Store, path: str) -> Checkpoint:
    """Read a checkpoint; raises MissingObjectError, CorruptObjectError, FormatVersionError."""
    tensors, state = _read(store, path)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "counts": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return Checkpoint(**{name: groups[name] for name in ("model", "optimizer", "average", "counts")}, state=state)


def write_weights(store: Store, path: str, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Publish weights alone, with what is known of them."""
    _write(store, path, dict(weights), state)


def read_weights(store: Store, path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of `write_weights` or of a whole checkpoint, and their JSON."""
    tensors, state = _read(store, path)
    own = {key.removeprefix("model/"): tensor for key, tensor in tensors.items() if key.startswith("model/")}
    return own or tensors, state


def load_model(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Give a model its weights; CorruptObjectError names what does not fit."""
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise CorruptObjectError(where, f"these weights do not fit the model of run.json ({str(error).splitlines()[-1].strip()})") from None


def _write(store: Store, path: str, tensors: dict[str, Tensor], state: Mapping[str, Any]) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Views of one storage would be refused, and tied weights are equal weights.
    seen: set[int] = set()
    for name, tensor in plain.items():
        if tensor.data_ptr() in seen:
            plain[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    header = json.dumps({"version": VERSION, "state": dict(state), "sha256": _digest(plain, state)})
    store.write(path, save(plain, {_HEADER: header}))


def _digest(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(canonical_json(dict(state)))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(store: Store, path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    data = store.read(path)
    try:
        tensors = load(data)
        header = json.loads(_metadata(data)[_HEADER])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptObjectError(path, f"not a checkpoint of tokenshards ({type(error).__name__}: {error}); {len(data)} bytes") from None
    if header.get("version") != VERSION:
        raise FormatVersionError(f"{path}: checkpoint version {header.get('version')!r}; this version reads {VERSION}. Upgrade tokenshards")
    found = _digest(tensors, header["state"])
    if found != header["sha256"]:
        raise CorruptObjectError(path, f"the sha256 of its content is {found[:12]}…; its header says {header['sha256'][:12]}…")
    return tensors, header["state"]


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
