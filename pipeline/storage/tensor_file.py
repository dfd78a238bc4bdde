"""Tensors and JSON state as one sealed object in any store: a safetensors file with the state in its header. No pickle.

Training checkpoints of classifiers and of tokenizers are such objects. Needs torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tokenshards.pipeline.canonical import canonical_json
from tokenshards.pipeline.errors import CorruptObjectError, FormatVersionError
from tokenshards.pipeline.storage.store import Store

__all__ = ["load_tensors", "parse_tensors", "safetensors_metadata", "save_tensors"]

VERSION = 1
_HEADER = "tokenshards.checkpoint"


def save_tensors(store: Store, path: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Publish named tensors and plain JSON state as one object; a crash leaves the previous object in place."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors refuses tensors that share memory, as tied weights do; so copy the second one.
    seen: set[int] = set()
    for name, tensor in plain.items():
        if tensor.data_ptr() in seen:
            plain[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    header = json.dumps({"version": VERSION, "state": dict(state), "sha256": _digest(plain, state)})
    store.write(path, save(plain, {_HEADER: header}))


def load_tensors(store: Store, path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and state; raises MissingObjectError, and what `parse_tensors` raises."""
    return parse_tensors(store.read(path), path)


def parse_tensors(data: bytes, path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and state from bytes; raises CorruptObjectError for changed bytes, FormatVersionError for another version."""
    try:
        tensors = load(data)
        header = json.loads(safetensors_metadata(data)[_HEADER])
        if header["version"] != VERSION:
            raise FormatVersionError(f"{path}: checkpoint version {header['version']!r}; this version reads {VERSION}. Upgrade tokenshards")
        state, expected = header["state"], str(header["sha256"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptObjectError(path, f"not a checkpoint of tokenshards ({type(error).__name__}: {error}); {len(data)} bytes") from None
    found = _digest(tensors, state)
    if found != expected:
        raise CorruptObjectError(path, f"the sha256 of its content is {found[:12]}…; its header says {expected[:12]}…")
    return tensors, state


def safetensors_metadata(data: bytes) -> dict[str, str]:
    """Return the `__metadata__` of a safetensors file's header."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def _digest(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(canonical_json(dict(state)))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
