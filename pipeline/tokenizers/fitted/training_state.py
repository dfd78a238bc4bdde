"""Where a training of a tokenizer stands, after its last whole epoch: one object on any store, read without unpickling."""

from __future__ import annotations

import json
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.storage.store import Store

__all__ = ["TrainingState"]

NAME = "training.state"
"""SHA-256 of what follows, and a safetensors file."""
_REPORTS, _DIGEST, _CHECK = "reports", "training", "sha256"


class TrainingState:
    """The state of the training of a tokenizer into `store`; there is one, and it goes when the tokenizer is there."""

    def __init__(self, store: Store, prefix: str = "") -> None:
        self._store, self._path = store, f"{prefix}{NAME}"

    def save(self, tensors: dict[str, Tensor], digest: str, reports: list[dict[str, Any]]) -> None:
        """Write all tensors, and the reports of the epochs so far; `digest` names configuration and pictures."""
        data = safetensors.torch.save(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
            metadata={_DIGEST: digest, _REPORTS: json.dumps(reports)},
        )
        self._store.write(self._path, bytes.fromhex(sha256_hex(data)) + data)

    def load(self, digest: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
        """Return tensors and reports, or None where no training was stopped.

        Raises TokenizerError for the state of another training, and when a byte changed.
        """
        if self._store.info(self._path) is None:
            return None
        data = self._store.read(self._path)
        where = f"{self._store.url}/{self._path}"
        check, body = data[:32].hex(), data[32:]
        if check != sha256_hex(body):
            raise TokenizerError(
                f"{where}: its sha256 is {sha256_hex(body)[:12]}…; expected {check[:12]}…, as written. Delete it to train from the start"
            )
        length = int.from_bytes(body[:8], "little")
        metadata: dict[str, str] = json.loads(body[8 : 8 + length])["__metadata__"]
        if metadata[_DIGEST] != digest:
            raise TokenizerError(
                f"{where}: a training with other options or pictures stopped here after {len(json.loads(metadata[_REPORTS]))} epochs. "
                "Give the command that it was started with to continue it, another OUT, or delete that file to start over"
            )
        return safetensors.torch.load(body), json.loads(metadata[_REPORTS])

    def clear(self) -> None:
        """Remove it."""
        if self._store.info(self._path) is not None:
            self._store.delete(self._path)
