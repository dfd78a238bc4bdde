"""Fits the model of `compact` to sample rows, with the rounding of its integers in the loop.

Equal rows and seed give equal models on one machine.

Shapes: M samples (ids of rows), N slots, H hidden numbers, V nodes, J digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.pipeline.half_cosine import half_cosine
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.compact.code_tree import BRANCHES, digits_for, tree_paths
from tokenshards.pipeline.shards.compact.contexts import Slot, base_count, contexts_of
from tokenshards.pipeline.shards.compact.model import (
    LARGEST_BIAS,
    MOST_DOWN,
    MOST_HIDDEN,
    NEVER,
    SHIFT,
    CompactModel,
    LevelModel,
    node_starts,
)
from tokenshards.pipeline.shards.compact.model_size import affordable_slots
from tokenshards.pipeline.shards.compact.rows import groups_of_shapes, in_coding_order
from tokenshards.pipeline.shards.compact.streams import slot_ids
from tokenshards.pipeline.shards.spec import TokenizerSpec

__all__ = ["CompactFitConfig", "fit_compact"]

UNIT = 6.0
"""The largest hidden number while it is learned, 127 afterwards."""
LARGEST_WEIGHT = 7.0
"""At `down` 0 an int8 weight of 127 is 7.28."""
WARM_UP_STEPS = 50
MOST_DENSE_NODES = 128
MOST_SAMPLES = 2_000_000
"""Ids of a level that a fit learns from."""


@dataclass(frozen=True, kw_only=True)
class CompactFitConfig:
    """Settings of a fit."""

    hidden: int = 32
    epochs: int = 6
    batch: int = 2048
    """The largest batch. Of few ids smaller ones are made, so that an epoch has enough steps."""
    least_batch: int = 64
    steps: int = 400
    """Of an epoch, where batches of a size between the two allow so many."""
    learning_rate: float = 5e-3
    held_out: int = 16
    """One row in so many is kept to choose the epoch by."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Samples:
    """The ids of a level with what their slots hold."""

    slots_MN: npt.NDArray[np.int32]
    bases_M: npt.NDArray[np.int32]
    ids_M: npt.NDArray[np.int64]
    rows_M: npt.NDArray[np.int64]
    """Number of the row that each id is from."""


class _Network(nn.Module):
    present_V8: Tensor
    starts_N: Tensor

    def __init__(self, sizes: Sequence[int], bases: int, paths_K: npt.NDArray[np.uint32], hidden: int) -> None:
        super().__init__()
        rows = sum(size + 1 for size in sizes)
        digits = digits_for(len(paths_K))
        first = node_starts(digits)
        self.digits, self.first = digits, first
        present_V8 = np.zeros((first[-1], BRANCHES), bool)
        for digit in range(digits):
            down = 3 * (digits - digit - 1)
            present_V8[first[digit] + (paths_K.astype(np.int64) >> down + 3), paths_K.astype(np.int64) >> down & 7] = True
        self.register_buffer("present_V8", torch.from_numpy(present_V8))
        self.register_buffer(
            "starts_N", torch.tensor(np.cumsum([0, *(size + 1 for size in sizes[:-1])]) if sizes else [], dtype=torch.long)
        )
        self.table = nn.EmbeddingBag(max(1, rows), hidden, mode="sum")
        nn.init.normal_(self.table.weight, std=0.3)
        self.base = nn.Parameter(torch.full((bases, hidden), 0.5))
        self.weight = nn.Parameter(torch.randn(first[-1], BRANCHES, hidden) * 0.1)
        self.bias = nn.Parameter(torch.zeros(first[-1], BRANCHES))
        self.rounded = False

    @property
    def down(self) -> int:
        """Return the finest `down` at which all weights fit into int8."""
        step = float(self.weight.detach().abs().max().clamp_min(1e-3)) * (UNIT / MOST_HIDDEN) / 127
        return min(MOST_DOWN, max(0, math.floor(math.log2(math.log(2) / 256 / step))))

    @property
    def quantum(self) -> float:
        """Return how much one step of score is in nats: that of an int8 weight for one of 127 hidden steps."""
        return math.log(2) / 256 / float(1 << self.down)

    def forward(self, slots_MN: Tensor, bases_M: Tensor, path_M: Tensor) -> Tensor:
        """Return the mean nats of an id."""
        total_MH = self.base[bases_M]
        if slots_MN.shape[1]:
            total_MH = total_MH + self.table(slots_MN + self.starts_N)
        hidden_MH = total_MH.clamp(0, UNIT)
        weight_V8H: Tensor = self.weight
        if self.rounded:
            step = UNIT / MOST_HIDDEN
            hidden_MH = hidden_MH + ((hidden_MH / step).floor() * step - hidden_MH).detach()
            quantum = self.quantum / step
            weight_V8H = weight_V8H + ((weight_V8H / quantum).round() * quantum - weight_V8H).detach()
        bias_V8 = self.bias.masked_fill(~self.present_V8, -1e4)
        nats = torch.zeros((), device=hidden_MH.device)
        for digit in range(self.digits):
            down = 3 * (self.digits - digit - 1)
            nodes = slice(self.first[digit], self.first[digit + 1])
            node_M, branch_M = path_M >> down + 3, path_M >> down & 7
            if nodes.stop - nodes.start <= MOST_DENSE_NODES:  # the scores of all nodes cost less than rows of weights picked by node
                all_MV8 = F.linear(hidden_MH, weight_V8H[nodes].flatten(0, 1), bias_V8[nodes].flatten()).view(len(node_M), -1, BRANCHES)
                logits_M8 = all_MV8.gather(1, node_M[:, None, None].expand(-1, 1, BRANCHES))[:, 0]
            else:
                own_M8H = F.embedding(node_M, weight_V8H[nodes].flatten(1)).view(len(node_M), BRANCHES, -1)
                logits_M8 = torch.matmul(own_M8H, hidden_MH[:, :, None])[:, :, 0] + F.embedding(node_M, bias_V8[nodes])
            nats = nats + F.cross_entropy(logits_M8, branch_M)
        return nats


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps of a fit are small: a second thread saves nothing, and on a busy machine its waiting takes ten times as long as the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def fit_compact(
    tokens: TokenBatch, spec: TokenizerSpec, tables: Tables, config: CompactFitConfig, say: Callable[[str], None] = lambda line: None
) -> CompactModel:
    """Return a model for the ids of a tokenizer, fitted to sample rows that `check_tokens` accepts. `tables`: its codebook, or none."""
    layout = spec.layout
    slots = affordable_slots(spec, config.hidden)
    parts: list[list[_Samples]] = [[] for _ in slots]
    most = max(1, MOST_SAMPLES // layout.sites)
    for shape, rows in groups_of_shapes(layout, len(tokens), tokens.sizes):
        contexts = contexts_of(layout, shape, slots)
        rows = rows[rows < most]
        ids_BT = in_coding_order(tokens.ids_BLQ[rows], len(contexts.levels_T) // layout.ids_per_site)
        for level, own in enumerate(slots):
            own_T = np.flatnonzero(contexts.levels_T == level)
            known = slot_ids(ids_BT, contexts.earlier_TN[own_T], len(own), [spec.vocabulary[slot.level] for slot in own])
            parts[level].append(
                _Samples(
                    known.reshape(len(rows) * len(own_T), len(own)).astype(np.int32),
                    np.tile(contexts.bases_T[own_T], len(rows)),
                    ids_BT[:, own_T].ravel(),
                    np.repeat(rows, len(own_T)),
                )
            )
    levels = []
    for level, own in enumerate(slots):
        samples = _Samples(*(np.concatenate([getattr(part, name) for part in parts[level]]) for name in _Samples.__slots__))
        table, codes = tables.get(f"level_{level}"), spec.vocabulary[level]
        paths_K = tree_paths(None if table is None else np.asarray(table, np.float32), codes)
        named = f"level {level}: " if len(slots) > 1 else ""
        if own:
            codes_of_slots = tuple(spec.vocabulary[slot.level] for slot in own)
            found = _fitted(samples, own, codes_of_slots, base_count(layout), paths_K, config, named, say)
        else:
            say(f"{named}{codes:,} codes are too many for tables of what is around; how frequent they are is used")
            found = _counted(samples, base_count(layout), paths_K)
        found.check()
        levels.append(found)
    return CompactModel(tuple(levels))


def _counted(samples: _Samples, bases: int, paths_K: npt.NDArray[np.uint32]) -> LevelModel:
    """Return the integers of a level whose tables would be too large: how frequent each branch is, whatever is around."""
    codes = len(paths_K)
    counts_K = np.bincount(samples.ids_M, minlength=codes) + 0.5
    digits, first = digits_for(codes), node_starts(digits_for(codes))
    counts_V8 = np.zeros((first[-1], BRANCHES))
    for digit in range(digits):
        down = 3 * (digits - digit - 1)
        path_K = paths_K.astype(np.int64)
        np.add.at(counts_V8, (first[digit] + (path_K >> down + 3), path_K >> down & 7), counts_K)
    # At `down` 0 a step of score is 1/256 of a halving.
    biases_V8 = np.where(counts_V8 > 0, np.round(256 * np.log2(np.maximum(counts_V8, 0.5))), NEVER).astype(np.int32)
    nothing_V8H = np.zeros((first[-1], BRANCHES, 0), np.int8)
    return LevelModel((), (), codes, np.zeros((0, 0), np.int16), np.zeros((bases, 0), np.int32), nothing_V8H, biases_V8, 0, paths_K)


def _fitted(
    samples: _Samples,
    slots: tuple[Slot, ...],
    sizes: tuple[int, ...],
    bases: int,
    paths_K: npt.NDArray[np.uint32],
    config: CompactFitConfig,
    named: str,
    say: Callable[[str], None],
) -> LevelModel:
    """Return the integers of a level, of the epoch that was best on held-out rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = _Network(sizes, bases, paths_K, config.hidden)
    path_M = torch.from_numpy(paths_K[samples.ids_M].astype(np.int64))
    slots_MN, bases_M = torch.from_numpy(samples.slots_MN), torch.from_numpy(samples.bases_M)
    held_M = torch.from_numpy(samples.rows_M % config.held_out == 0)
    held, train = torch.nonzero(held_M)[:, 0], torch.nonzero(~held_M)[:, 0]
    train = train if len(train) else held  # a single row
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    batch = min(config.batch, max(config.least_batch, len(train) // config.steps))
    steps = max(1, len(train) // batch)
    best, step = (math.inf, network.state_dict()), 0
    for epoch in range(config.epochs):
        network.rounded = epoch >= config.epochs // 2
        order = train[torch.randperm(len(train), generator=generator)]
        for place in range(steps):
            chosen = order[place * batch : (place + 1) * batch]
            for group in optimizer.param_groups:
                warm = min(1.0, (step + 1) / WARM_UP_STEPS)
                group["lr"] = config.learning_rate * warm * half_cosine(step / (steps * config.epochs))
            optimizer.zero_grad(set_to_none=True)
            network(slots_MN[chosen], bases_M[chosen], path_M[chosen]).backward()
            optimizer.step()
            with torch.no_grad():
                network.weight.clamp_(-LARGEST_WEIGHT, LARGEST_WEIGHT)
            step += 1
        network.rounded = True
        with torch.no_grad():
            parts = [network(slots_MN[own], bases_M[own], path_M[own]) * len(own) for own in torch.split(held, 65536)]
            bits = float(torch.stack(parts).sum()) / len(held) / math.log(2)
        say(f"{named}epoch {epoch + 1}: {bits:.3f} bits an id on held-out rows")
        if bits < best[0]:
            best = bits, {name: value.detach().clone() for name, value in network.state_dict().items()}
    network.load_state_dict(best[1])
    return _integers(network, slots, sizes, paths_K)


def _integers(network: _Network, slots: tuple[Slot, ...], sizes: tuple[int, ...], paths_K: npt.NDArray[np.uint32]) -> LevelModel:
    per_unit = MOST_HIDDEN / UNIT * (1 << SHIFT)
    quantum = network.quantum
    weights = (network.weight.detach() * (UNIT / MOST_HIDDEN) / quantum).round().clamp(-127, 127)
    biases = (network.bias.detach() / quantum).round().clamp(-LARGEST_BIAS, LARGEST_BIAS).masked_fill(~network.present_V8, NEVER)
    rows = sum(size + 1 for size in sizes)
    return LevelModel(
        slots=slots,
        sizes=sizes,
        codes=len(paths_K),
        tables_RH=(network.table.weight.detach()[:rows] * per_unit).round().clamp(-32768, 32767).to(torch.int16).numpy(),
        bases_BH=(network.base.detach() * per_unit).round().to(torch.int32).numpy(),
        weights_V8H=weights.to(torch.int8).numpy(),
        biases_V8=biases.to(torch.int32).numpy(),
        down=network.down,
        paths_K=paths_K,
    )
