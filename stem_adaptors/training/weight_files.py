"""Weights in files: which are read, and by which names. Wrappers (DDP, compile, Lightning, a user's module) put prefixes before names."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError, NotFoundError, shorten
from tokenshards.pipeline.shards.manifest import MANIFEST_POINTER
from tokenshards.pipeline.storage.store import Store, open_parent
from tokenshards.stem_adaptors.training.run_directory import BEST, RUN_JSON

__all__ = ["code_vectors", "plain_names", "read_tensors"]

_CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
"""Entries of a checkpoint of torch below which the tensors may lie."""
_WRAPPERS = {"model", "module", "backbone", "net", "network", "classifier"}
_INSIDE = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put anywhere into a name."""
_WHOLE_MODEL = "model.safetensors"
"""The file in a folder that the Trainer of transformers saves."""


def read_tensors(path: str) -> dict[str, Tensor]:
    """Return the tensors by name of a checkpoint file, of a folder with `model.safetensors`, or of the best weights of a run directory.

    Raises ConfigError where the file holds no tensors or cannot be read safely, NotFoundError where there is no such file.
    """
    for mark, file in ((RUN_JSON, BEST), (_WHOLE_MODEL, _WHOLE_MODEL)):
        if Store(path).info(mark) is not None:
            path = f"{path.rstrip('/')}/{file}"
            break
    if Store(path).info(MANIFEST_POINTER) is not None:
        raise ConfigError(f"{path}: holds a dataset; expected a run of `train` or `pretrain`, or a file of weights")
    folder, name = open_parent(path.replace("\\", "/"))
    if folder.info(name) is None:
        raise NotFoundError(path, "no file and no run is here; expected the weights of a model. Check the path")
    data = folder.read(name)
    try:
        value: Any = load_safetensors(data) if name.endswith(".safetensors") else torch.load(io.BytesIO(data), "cpu", weights_only=True)
    except Exception as error:  # torch raises many types of error for broken files
        raise ConfigError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {shorten(str(error))}); "
            "expected .safetensors, or a file of torch.save that holds tensors alone"
        ) from None
    for key in _CONTAINERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    tensors = {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor)} if isinstance(value, Mapping) else {}
    if not tensors:
        raise ConfigError(f'{path}: holds {type(value).__name__}; expected tensors by name, or a dict with "model" or "state_dict"')
    return {_INSIDE.sub("", name): tensor for name, tensor in tensors.items()}


def plain_names(tensors: Mapping[str, Tensor], wanted: Collection[str], path: str) -> dict[str, Tensor]:
    """Return the tensors without the prefix before most names of `wanted`; tensors without that prefix keep their names.

    Code vectors lie beside a `backbone`; they too lose what is before `embedding.`. Raises ConfigError where the file holds two models.
    """
    prefix = _prefix(tensors, wanted, path)
    beside = prefix.removesuffix("backbone.")
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            named[name.removeprefix(prefix)] = tensor
        else:
            named.setdefault(name.removeprefix(beside) if name.startswith(f"{beside}embedding.") else name, tensor)
    return named


def code_vectors(tensors: Mapping[str, Tensor], levels: int, path: str) -> list[Tensor] | None:
    """Return the tables `embedding.level_0`, … of a classifier of ours; None where the file has none. ConfigError where a level lacks."""
    wanted = [f"embedding.level_{level}" for level in range(levels)]
    prefix = _prefix(tensors, wanted, path)
    found = {name: tensors[prefix + name] for name in wanted if prefix + name in tensors}
    if not found:
        return None
    if len(found) < levels or f"{prefix}embedding.level_{levels}" in tensors:
        count = sum(name.startswith(f"{prefix}embedding.level_") for name in tensors)
        raise ConfigError(
            f"{path}: has code vectors of {count} levels, the dataset {levels} ids per site. Give the dataset that belongs to the weights"
        )
    return list(found.values())


def _prefix(names: Iterable[str], wanted: Collection[str], path: str) -> str:
    """Return what is before most of the wanted names, the empty text where none is there."""
    known = set(wanted)
    counts: Counter[str] = Counter()
    for name in names:
        starts = [0, *(match.end() for match in re.finditer(r"[./]", name))]
        counts.update(name[:start] for start in starts if name[start:] in known)
    most = max(counts.values(), default=0)
    best = sorted((prefix for prefix in counts if counts[prefix] == most), key=lambda prefix: (not _wraps(prefix), len(prefix)))
    if len(best) > 1 and most > 1 and not _wraps(best[0]):
        raise ConfigError(
            f"{path}: holds {len(best)} models, as {' and '.join(f'{prefix}*' for prefix in best[:4])}; expected one. "
            "Save one of them in a file of its own"
        )
    return best[0] if best else ""


def _wraps(prefix: str) -> bool:
    return set(filter(None, re.split(r"[./]", prefix))) <= _WRAPPERS
