"""The state of a tokenizer's training after its last whole epoch: one object on any store, read without unpickling."""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import load
from torch import Tensor

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import CorruptObjectError, TokenizerError
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.storage.tensor_file import parse_tensors, safetensors_metadata, save_tensors
from tokenshards.pipeline.words import counted

__all__ = ["TrainingState"]

NAME = "training.state"
_REPORTS, _DIGEST = "reports", "training"


class TrainingState:
    """The state of the training of a tokenizer into `store`. There is one state; the finished tokenizer replaces it."""

    def __init__(self, store: Store, prefix: str = "") -> None:
        self._store, self._path = store, f"{prefix}{NAME}"

    def save(self, tensors: dict[str, Tensor], digest: str, reports: list[dict[str, Any]]) -> None:
        """Write all tensors, and the reports of the epochs so far; `digest` identifies configuration and images."""
        save_tensors(self._store, self._path, tensors, {_DIGEST: digest, _REPORTS: reports})

    def load(self, digest: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
        """Return tensors and reports, or None where there is no stopped training.

        Raises TokenizerError for the state of another training, and where a byte changed.
        """
        if self._store.info(self._path) is None:
            return None
        where = f"{self._store.url}/{self._path}"
        try:
            data = self._store.read(self._path)
            tensors, state = _first_form(data) or parse_tensors(data, self._path)
        except CorruptObjectError as error:
            raise TokenizerError(f"{where}: {error.detail}. Delete it to train from the start") from None
        if state[_DIGEST] != digest:
            raise TokenizerError(
                f"{where}: a training with other options or images stopped here after {counted(len(state[_REPORTS]), 'epoch')}. "
                "Give the command that it was started with to continue it, another OUT, or delete that file to start over"
            )
        return tensors, state[_REPORTS]

    def clear(self) -> None:
        """Remove it."""
        if self._store.info(self._path) is not None:
            self._store.delete(self._path)


def _first_form(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the form that was written until 0.1.0: the SHA-256 of a safetensors file, then that file. None for any other form."""
    body = data[32:]
    if data[:32].hex() != sha256_hex(body):
        return None
    metadata = safetensors_metadata(body)
    return load(body), {_DIGEST: metadata[_DIGEST], _REPORTS: json.loads(metadata[_REPORTS])}
