"""Tensors of a checkpoint and their networks, checked key by key under the published names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import TokenizerError

__all__ = ["EMA", "as_arrays", "as_tensors", "check_fits", "count_parts", "load_into", "tensor_of", "with_ema"]

EMA = "model_ema."


def load_into(module: nn.Module, state: Mapping[str, Tensor], where: str, *, names: Callable[[str], str] = str) -> nn.Module:
    """Give the module a copy of its weights as float32, and return it in evaluation mode; raises as `check_fits` does."""
    keys_of = check_fits(module, state, where, names=names)
    module.load_state_dict({keys_of[key]: value.float() for key, value in state.items()})
    return module.eval().requires_grad_(False)


def check_fits(module: nn.Module, state: Mapping[str, Tensor], where: str, *, names: Callable[[str], str] = str) -> dict[str, str]:
    """Return the key of the module for each key of `state`; `names` maps a key of the module to its key in `state`.

    Raises TokenizerError that names a key of `state` which is missing, has another shape, or is of no use here.
    """
    own = module.state_dict()
    keys_of = {names(key): key for key in own}
    expected = {key: own[name] for key, name in keys_of.items()}
    for problem, keys in (
        ("is missing", [key for key in expected if key not in state]),
        ("is not a part of this network", [key for key in state if key not in expected]),
        ("has another shape", [key for key in expected if key in state and state[key].shape != expected[key].shape]),
    ):
        if not keys:
            continue
        key, others = keys[0], f", and so for {len(keys) - 1} more" if len(keys) > 1 else ""
        shapes = f": {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}" if key in state and key in expected else ""
        raise TokenizerError(
            f"{where}: the key {key} {problem}{shapes}{others}. Is this the file of another model, or of another size of it?"
        )
    return keys_of


def with_ema(state: Mapping[str, Tensor], prefixes: tuple[str, ...], where: str) -> dict[str, Tensor]:
    """Return a checkpoint with its parameters replaced by their moving averages, where it has any, and without the averages' own keys.

    An average is stored as `model_ema.` and the parameter's name without dots. TokenizerError where a key with one of the prefixes has
    none.
    """
    averages = {key.removeprefix(EMA): value for key, value in state.items() if key.startswith(EMA)}
    kept = {key: value for key, value in state.items() if not key.startswith(EMA)}
    if not averages:
        return kept
    for key in kept:
        if key.startswith(prefixes) and key.replace(".", "") not in averages:
            raise TokenizerError(
                f"{where}: it holds moving averages ({EMA}…) and none of {key}; expected one of every parameter. Is the file whole? "
                "--no-ema takes the parameters as they are"
            )
    return {key: averages.get(key.replace(".", ""), value) for key, value in kept.items()}


def tensor_of(state: Mapping[str, Tensor], key: str, dimensions: int, where: str, what: str) -> Tensor:
    """Return the tensor that tells the size of a network. TokenizerError where it is missing or has another number of dimensions."""
    found = state.get(key)
    if found is None or found.ndim != dimensions:
        shape = "" if found is None else f" of {dimensions} dimensions, but one of shape {tuple(found.shape)}"
        shown = ", ".join(sorted(state)[:3]) or "nothing"
        raise TokenizerError(f"{where}: no tensor {key}{shape}, the keys begin with {shown}; expected the checkpoint of {what}")
    return found


def count_parts(state: Mapping[str, Tensor], name: str) -> int:
    """Return the number of numbered parts, `name.0`, `name.1`, …, in a state dict: the highest number plus one."""
    places = (key.removeprefix(f"{name}.").partition(".")[0] for key in state if key.startswith(f"{name}."))
    return 1 + max((int(place) for place in places if place.isdecimal()), default=-1)


def as_arrays(state: Mapping[str, Tensor], prefix: str) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors as arrays in their dtypes, under `prefix` and their names. bfloat16, which numpy lacks, becomes float32."""
    return {
        prefix + key: np.ascontiguousarray((value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy())
        for key, value in state.items()
    }


def as_tensors(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, Tensor]:
    """Return the tensors that `as_arrays` put under this prefix."""
    return {key.removeprefix(prefix): torch.from_numpy(np.array(value)) for key, value in arrays.items() if key.startswith(prefix)}
