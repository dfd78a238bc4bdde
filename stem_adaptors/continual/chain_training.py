"""Trains a chain step by step: choose the memory, learn the new classes beside it, measure.

Shapes: N rows of a dataset, n rows of a selection, V labelled images to measure on.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenshards.pipeline.canonical import keyed_hashes64
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.comparison.paired import packed
from tokenshards.stem_adaptors.comparison.timed_run import made_model, made_trainer, right_of
from tokenshards.stem_adaptors.continual.chain import Chain
from tokenshards.stem_adaptors.continual.class_groups import class_groups
from tokenshards.stem_adaptors.continual.herding import herded, normalised
from tokenshards.stem_adaptors.continual.kept_steps import KeptSteps
from tokenshards.stem_adaptors.continual.replay_memory import ReplayMemory, quotas
from tokenshards.stem_adaptors.continual.seen_classes import SeenTrainer, features_of
from tokenshards.stem_adaptors.curves.measured_images import sample_ids
from tokenshards.stem_adaptors.data.class_names import class_map
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.selection import Ints, Selection, labels_of
from tokenshards.stem_adaptors.training.checkpoints import copied_tensors, load_model

__all__ = ["shared_draws", "train_chain"]


def train_chain(out_url: str, storage_options: dict[str, Any], chain: Chain) -> dict[str, Any]:
    """Train what is missing of a chain, keep its result and return it: `steps`, each with `right` as text of `packed` and its figures."""
    torch.set_num_threads(1)
    store = Store(out_url, storage_options=storage_options)
    found = {"run": chain.key, "seed": chain.seed, "process": os.getpid(), "steps": _Training(store, chain).run()}
    store.write(chain.path, json.dumps(found, sort_keys=True).encode())
    return found


def shared_draws(new_classes: int, old_classes: int) -> tuple[int, int]:
    """Return the weights of the new group and of the memory in a mix, so that every class comes equally often, however few its images."""
    return new_classes, old_classes


class _Rows:
    """A dataset whose classes are known by the order in which they come."""

    def __init__(self, dataset: TokenDataset, names: tuple[str, ...]) -> None:
        self.dataset = dataset
        own = {str(name): name for name in dataset.classes}
        self.classes = tuple(own.get(name, name) for name in names)
        known_C = class_map(dataset.classes, names, dataset.store.url, missing_is_error=False).numpy()
        self._arrival_N = known_C[labels_of(dataset)]
        """The place of each row's class in the order in which they come; -1 for rows that are not learned from."""
        self._arrival_N[np.arange(len(dataset)) % dataset.views > 0] = -1

    def of_classes(self, start: int, stop: int) -> Ints:
        """Return the rows of the classes `start` to `stop`, in stored order."""
        return np.flatnonzero((self._arrival_N >= start) & (self._arrival_N < stop))

    def selection(self, rows_n: Ints) -> Selection:
        """Return rows as data to learn from, whose labels are places in the order."""
        return Selection(dataset=self.dataset, rows_n=np.sort(rows_n), classes=self.classes)

    @functools.cached_property
    def ids(self) -> list[str]:
        """Of all rows."""
        return sample_ids(self.dataset)

    @functools.cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each sample id that has a class."""
        return {self.ids[row]: row for row in np.flatnonzero(self._arrival_N >= 0).tolist()}


class _Training:
    def __init__(self, store: Store, chain: Chain) -> None:
        self._steps, self._chain, self._device = KeptSteps(store, chain), chain, torch.device(chain.device)
        self._groups = class_groups(chain.classes, chain.steps, chain.seed)

        def opened(url: str) -> TokenDataset:
            return open_dataset(url, storage_options=store.storage_options)

        self._learned, self._val = _Rows(opened(chain.train_url), self._groups.names), opened(chain.val_url)
        same = chain.memory_url == chain.train_url
        self._kept = self._learned if same else _Rows(opened(chain.memory_url), self._groups.names)

    def run(self) -> list[dict[str, Any]]:
        kept, chain = self._steps, self._chain
        weights = kept.weights() if 0 < len(kept.results) < chain.until else None
        memory = (kept.memory(kept.keys[-1]) if kept.keys else None) or ReplayMemory()
        while (step := len(kept.results)) < chain.until:
            if step and chain.images:
                memory = self._memory_for(step, memory, weights)
            result, weights = self._trained(step, memory, weights)
            kept.finish(result, weights)
        kept.close()
        return kept.results

    def _memory_for(self, step: int, before: ReplayMemory, weights: Mapping[str, Tensor] | None) -> ReplayMemory:
        """Return the memory that a step learns from. Its new images are chosen by the model of the step before, among its classes."""
        key, images, classes = self._steps.next_key, self._chain.images or 0, self._groups.seen(step - 1)
        memory = self._steps.memory(key)
        if memory is None:
            memory = before.with_classes(self._orders(step - 1, quotas(images, classes), weights), images)
            self._steps.keep_memory(key, memory, self._groups.names)
        return memory

    def _orders(self, step: int, shares: tuple[int, ...], weights: Mapping[str, Tensor] | None) -> list[list[str]]:
        """Return the sample ids of each class of a group that has come, best first, as many as its share."""
        rows, first, orders = self._learned, self._groups.seen(step - 1), []
        model = None
        for place in range(first, self._groups.seen(step)):
            rows_n = rows.of_classes(place, place + 1)
            rows_n = rows_n[[rows.ids[row] in self._kept.row_of for row in rows_n.tolist()]]
            if self._chain.choice == "random":
                order_n = np.argsort(keyed_hashes64(f"memory {self._chain.seed}", [rows.ids[row] for row in rows_n]), kind="stable")
            elif len(rows_n):
                data = rows.selection(rows_n)
                if model is None:
                    model = made_model(data).to(self._device)
                    load_model(model, weights or {}, "the weights of the step before")
                order_n = herded(normalised(features_of(model, data, self._device)), shares[place])
            else:
                order_n = np.zeros(0, np.int64)
            orders.append([rows.ids[row] for row in rows_n[order_n[: shares[place]]].tolist()])
        return orders

    def _trained(
        self, step: int, memory: ReplayMemory, weights: Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
        """Train and measure a step; return its result and its weights."""
        groups, chain = self._groups, self._chain
        new = self._learned.selection(self._learned.of_classes(groups.seen(step - 1), groups.seen(step)))
        old = self._old_rows(step, memory)
        draws = shared_draws(groups.sizes[step], groups.seen(step - 1))
        data = Mix(list(zip((new, self._kept.selection(old)), draws, strict=True))) if len(old) else new
        kind = functools.partial(SeenTrainer, seen=groups.seen(step), weights=weights)
        with tempfile.TemporaryDirectory(prefix="tokenshards-continual-") as folder:
            out = Store(folder)
            trainer = made_trainer(kind, data, out, seed=chain.seed, device=self._device, begun=0.0, seconds=chain.step_seconds)
            trainer.train()
        known = class_map(self._val.classes, groups.names, self._val.store.url, missing_is_error=False)
        right_V = right_of(trainer.model, known, self._val, self._device)
        result = {**trainer.figures(), "right": packed(right_V), "images": len(right_V), "new": len(new), "memory": len(old)}
        return result, copied_tensors(trainer.model.state_dict())

    def _old_rows(self, step: int, memory: ReplayMemory) -> Ints:
        """Return the rows that come back in a step."""
        if self._chain.images is None:
            return self._kept.of_classes(0, self._groups.seen(step - 1))
        return np.array([self._kept.row_of[name] for ids in memory.ids for name in ids], np.int64)
