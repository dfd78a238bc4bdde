"""The operations that hold others: one of several, and one list for each half.

Shapes: B samples, G mix groups, C operations to choose from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment.numbers import Draw, Numbers
from tokenshards.stem_adaptors.augment.operation import Data, Operation, short_value
from tokenshards.stem_adaptors.augment.state import Cut, TokenState

__all__ = ["HalfBatch", "OneOf", "late_reader"]


class _Composed(Operation):
    """An operation made of others."""

    parts: nn.ModuleList

    def _own_parts(self) -> list[Operation]:
        return [part for part in self.parts if isinstance(part, Operation)]

    def refusal(self, layout: Layout) -> str | None:
        """Return the first refusal of a part."""
        return next((found for part in self._own_parts() if (found := part.refusal(layout)) is not None), None)

    def map_refusal(self) -> str | None:
        """Return the first reason of a part."""
        return next((found for part in self._own_parts() if (found := part.map_refusal()) is not None), None)

    def members(self) -> list[Operation]:
        """Return this operation and all within it."""
        return [self, *(member for part in self._own_parts() for member in part.members())]


class OneOf(_Composed):
    """Gives each sample one of several operations, or none: `one_of(0.25*synonyms(), 0.25*swap())` leaves half of the samples as they are.

    A probability is the share of samples; for CutMix and Mixup, of mix groups. One number for each sample (group) decides.
    """

    name = "one_of"
    edges_C2: Tensor

    def __init__(self, *choices: tuple[float, Operation], stream: str | None = None) -> None:
        """Choose among (probability, operation) pairs; `stream` names the number that decides.

        Raises ConfigError for probabilities outside of 0 to 1 or with a sum above 1, and for operations that do not fit together.
        """
        super().__init__()
        chances = [chance for chance, _ in choices]
        if not choices or min(chances) < 0 or sum(chances) > 1 + 1e-9:
            raise ConfigError(f"one_of has the probabilities {chances}; expected at least one, none below 0, and a sum of at most 1")
        self.chances = chances
        self.parts = nn.ModuleList(operation for _, operation in choices)
        parts = self._own_parts()
        for what, found in (("works on", {part.stage for part in parts}), ("chooses by group", {part.by_group for part in parts})):
            if len(found) > 1:
                raise ConfigError(
                    f"one_of holds {', '.join(part.name for part in parts)}, and not each {what} the same; expected operations on ids, "
                    "or on embeddings of single samples, or CutMix and Mixup: write one_of for each kind"
                )
        self.stage, self.by_group = parts[0].stage, parts[0].by_group
        self.mixes = any(part.mixes for part in parts)
        self.certain = chances == [1.0]
        """Whether all samples get the one operation."""
        self.stream = stream or _stream([part.name for part in parts])
        stops = torch.tensor(chances, dtype=torch.float64).cumsum(0)
        edges_C2 = torch.stack([torch.cat([stops.new_zeros(1), stops[:-1]]), stops], dim=1).float()
        self.register_buffer("edges_C2", edges_C2, persistent=False)

    def prepare(self, spec: TokenizerSpec, tables: Tables, grid: tuple[int, ...]) -> None:
        """Prepare the parts. Raises ConfigError for a part that would change the grid of some samples only."""
        for part in self._own_parts():
            part.prepare(spec, tables, grid)
            if part.out_grid(grid) != grid:
                raise ConfigError(
                    f"one_of holds {part.name}, which makes {part.out_grid(grid)} sites of {grid} in some samples only; expected "
                    "operations that keep the grid: move it out of one_of"
                )

    @property
    def choices(self) -> list[tuple[float, Operation]]:
        """The operations with their probabilities."""
        return list(zip(self.chances, self._own_parts(), strict=True))

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """Return the number that decides, then those of the operations."""
        return (Draw(self.stream), *(draw for part in self._own_parts() for draw in part.draws(data)))

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Return the samples, each after the operation that its number chose."""
        if self.certain:
            return self._own_parts()[0].forward(state, numbers)
        own = numbers[: state.groups] if self.by_group else numbers
        draw_1N = own.uniform(self.stream).view(1, -1)
        hit_CN = draw_1N < self.edges_C2[:, 1:]
        if len(hit_CN) > 1:
            hit_CN = hit_CN & (draw_1N >= self.edges_C2[:, :1])
        chosen = list(zip(self._own_parts(), hit_CN.unbind(0), strict=True))
        if self.version > 3:  # what looks at other samples comes first, and sees them as they were
            chosen = [pair for mixes in (True, False) for pair in chosen if pair[0].mixes is mixes]
        for part, hit in chosen:
            state = part.chosen(state, numbers, hit)
        return state

    def text(self) -> str:
        """Return the operation as `augment.ops` names it."""
        return f"one_of({', '.join(f'{short_value(float(chance))}*{part.text()}' for chance, part in self.choices)})"


_STREAMS = {"eda": {"synonyms", "swap"}, "flip": {"flip"}, "noise": {"noise", "color_adapt"}, "mix": {"cutmix", "mixup"}}


def _stream(names: list[str]) -> str:
    """Return the stream of a choice: that of the fields of AugmentConfig, where they describe the same choice."""
    found = [stream for stream, members in _STREAMS.items() if members >= set(names)]
    return found[0] if found else "one_of." + ".".join(names)


class HalfBatch(_Composed):
    """Two lists of operations, one for each half of every mix group: `half_batch([noise()], [color_adapt()])`.

    Each half is mixed within itself. Of a group of odd size the second half is the larger one.
    """

    name = "half_batch"

    def __init__(self, first: Sequence[Operation], second: Sequence[Operation]) -> None:
        """Raises ConfigError where the operations work partly on ids and partly on embeddings."""
        super().__init__()
        self.parts = nn.ModuleList([*first, *second])
        self.count = len(first)
        self.gives_ids = all(half and half[-1].gives_ids for half in self.halves)
        stages = {part.stage for part in self._own_parts()}
        if len(stages) != 1:
            raise ConfigError(f"half_batch holds operations on {sorted(stages) or 'nothing'}; expected all on ids or all on embeddings")
        [self.stage] = stages
        self.mixes = True

    @property
    def halves(self) -> tuple[list[Operation], list[Operation]]:
        """The operations of either half."""
        parts = self._own_parts()
        return parts[: self.count], parts[self.count :]

    def prepare(self, spec: TokenizerSpec, tables: Tables, grid: tuple[int, ...]) -> None:
        """Prepare the parts."""
        for half in self.halves:
            for part, before in zip(half, _grids(half, grid), strict=False):
                part.prepare(spec, tables, before)

    def out_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Return the grid after the operations. Raises ConfigError where the halves end with different grids."""
        first, second = (_grids(half, grid)[-1] for half in self.halves)
        if first != second:
            raise ConfigError(f"half_batch makes grids of {first} and {second} sites; expected the same in both halves")
        return first

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """Return the numbers of both halves. Raises ConfigError where two operations of a half would get the same numbers."""
        found: list[Draw] = []
        for half in self.halves:
            own = [draw for part, grid in zip(half, _grids(half, data.grid), strict=False) for draw in part.draws(replace(data, grid=grid))]
            twice = sorted({draw.name for draw in own if sum(draw.name == other.name for other in own) > 1})
            if twice:
                raise ConfigError(f"half_batch: a half draws {', '.join(twice)} twice; expected each operation once in a half")
            found += own
        return tuple(found)

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Return the samples, each after the operations of its half."""
        count = len(state.targets_BC)
        middle = count // state.groups // 2 * state.groups
        results = []
        for half, rows in zip(self.halves, (slice(0, middle), slice(middle, count)), strict=True):
            part, own = state.take(rows, state.groups), numbers[rows]
            if rows.stop > rows.start:
                for operation in half:
                    part = operation(part, own)
                results.append(part)
        # On embeddings, ids without their vectors mean nothing any more, and the halves may have as many as their grids before a crop.
        with_ids = ("ids_BLQ",) if self.stage == "ids" or self.gives_ids else ()
        joined: dict[str, Any] = {}
        for name in (*with_ids, "targets_BC", "x", "mask", "maps_BHW"):  # a comprehension with a name of its own is beyond torch.compile
            found = [getattr(part, name) for part in results]
            if found[0] is not None:
                joined[name] = torch.cat(found)
        return state._replace(**joined, cut=_joined_cuts(results))

    def text(self) -> str:
        """Return the operation as `augment.ops` names it."""
        first, second = (", ".join(part.text() for part in half) for half in self.halves)
        return f"half_batch([{first}], [{second}])"


def late_reader(operations: Sequence[Operation]) -> Operation | None:
    """Return an operation that starts from the ids of whole samples and stands after another one on embeddings, if there is one."""
    late = [member for operation in operations[1:] for member in operation.members() if member.reads_ids]
    halves = [half for operation in operations[:1] if isinstance(operation, HalfBatch) for half in operation.halves]
    return next(iter(late), None) or next((found for half in halves if (found := late_reader(half)) is not None), None)


def _joined_cuts(parts: Sequence[TokenState]) -> Cut | None:
    """Return the cuts of all samples; None where no part has any."""
    known = next((part.cut for part in parts if part.cut is not None), None)
    if known is None:
        return None
    cuts = [known.nothing(len(part.targets_BC)) if part.cut is None else part.cut for part in parts]
    return Cut(*(torch.cat(found) for found in zip(*cuts, strict=True)))


def _grids(operations: Sequence[Operation], grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the grid before each operation, and the one after the last."""
    found = [grid]
    for operation in operations:
        found.append(operation.out_grid(found[-1]))
    return found
