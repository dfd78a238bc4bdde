"""The finished steps of a chain in a store, so that a killed chain goes on at the step that it had begun.

Of each step lie there, in this order: the memory that it learns from (JSON of sample ids), its weights (safetensors) and its result (JSON),
which has a digest of the weights and enters the name of the next step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.continual.chain import Chain
from tokenshards.stem_adaptors.continual.replay_memory import ReplayMemory
from tokenshards.stem_adaptors.training.checkpoints import read_weights, write_weights

__all__ = ["KeptSteps"]


class KeptSteps:
    """What is kept of one chain. Its first step serves all chains of its data and seed."""

    def __init__(self, store: Store, chain: Chain) -> None:
        self._store, self._chain = store, chain
        self.keys: list[str] = []
        """Names of the finished steps."""
        self.results: list[dict[str, Any]] = []
        """Of the finished steps. Without what the next one starts from, weights and memory, a step is not finished, save for the last."""
        whole = 0
        while len(self.keys) < chain.until and store.info(f"steps/{(key := self.next_key)}.json") is not None:
            self.keys.append(key)
            self.results.append(json.loads(store.read(f"steps/{key}.json")))
            if self._is_whole(key):
                whole = len(self.keys)
        if len(self.keys) < chain.steps:
            del self.keys[whole:], self.results[whole:]

    def _is_whole(self, key: str) -> bool:
        has_memory = len(self.keys) > 1 and bool(self._chain.images)
        if has_memory and self._store.info(_memory(key)) is None:
            return False
        return self._store.info(_weights(key)) is not None and self._weights_digest(key) == self.results[-1]["weights"]

    @property
    def next_key(self) -> str:
        """The name of the step after the finished ones."""
        before = sha256_hex(json.dumps(self.results[-1], sort_keys=True).encode()) if self.results else ""
        return self._chain.step_key(len(self.keys), before)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights of the last finished step."""
        return read_weights(self._store, _weights(self.keys[-1]))[0]

    def memory(self, key: str) -> ReplayMemory | None:
        """Return the memory that a step learns from, None where it is not chosen yet."""
        if self._store.info(_memory(key)) is None:
            return None
        return ReplayMemory(ids=tuple(tuple(ids) for _, ids in json.loads(self._store.read(_memory(key)))["classes"]))

    def keep_memory(self, key: str, memory: ReplayMemory, names: tuple[str, ...]) -> None:
        """Write the memory of a step. `names`: of the classes, in the order in which they come."""
        value = {"images": memory.images, "classes": list(zip(names, memory.ids, strict=False))}
        self._store.write(_memory(key), json.dumps(value).encode())

    def finish(self, result: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Write weights and result of the next step. Weights of the step before are deleted, save for those of the first."""
        key = self.next_key
        write_weights(self._store, _weights(key), weights, {"step": len(self.keys)})
        found = {**result, "weights": self._weights_digest(key)}
        self._store.write(f"steps/{key}.json", json.dumps(found, sort_keys=True).encode())
        self.keys.append(key)
        self.results.append(found)
        self._forget_weights(self.keys[1:-1])

    def close(self) -> None:
        """Delete the weights of a finished chain, save for those of its first step."""
        self._forget_weights(self.keys[1:])

    def _forget_weights(self, keys: list[str]) -> None:
        for key in keys:
            if self._store.info(_weights(key)) is not None:
                self._store.delete(_weights(key))

    def _weights_digest(self, key: str) -> str:
        return sha256_hex(self._store.read(_weights(key)))


def _weights(key: str) -> str:
    return f"steps/{key}.safetensors"


def _memory(key: str) -> str:
    return f"steps/{key}.memory.json"
