"""All random numbers of a step in one batched hash. They are bit for bit those of `SampleKeys`.

Shapes: B samples, S streams (named sequences of numbers), N words of a sample over all streams, M normal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.augment.keys import (
    SampleKeys,
    all_rows,
    as_uniform,
    as_wide,
    constants,
    digest_halves,
    folded,
    folded_counters,
    mixed,
    normal_quantiles,
    products_,
    sample_bases,
)

__all__ = ["Draw", "DrawPlan", "DrawnNumbers", "Numbers", "few_on"]

FEW = 64
"""Most numbers of a stream that a CPU draws for all samples. Longer streams are drawn for the samples that use them."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The numbers that an operation needs for each sample, declared before the first step."""

    name: str
    """The stream. Operations with streams of different names share no numbers."""
    kind: Literal["uniform", "integers", "normal"] = "uniform"
    count: int = 1
    """Most numbers for one sample."""

    @property
    def words(self) -> int:
        """Hash words for the numbers: one each, or one for two normal numbers."""
        return (self.count + 1) // 2 if self.kind == "normal" else self.count


class Numbers(Protocol):
    """The random numbers of some samples. `SampleKeys` is one, the result of a DrawPlan another."""

    def uniform(self, name: str, count: int = 1) -> Tensor:
        """Return float32 [B, count], multiples of 2^-24 in [0, 1)."""

    def integers(self, name: str, high: int | Tensor, count: int = 1) -> Tensor:
        """Return int64 [B, count] from 0 to `high` - 1; `high` may be a tensor that broadcasts to the result."""

    def normal(self, name: str, count: int = 1) -> Tensor:
        """Return float32 [B, count], standard normal."""

    def __getitem__(self, rows: slice | Tensor) -> Numbers:
        """Return the numbers of some of the samples."""

    def __len__(self) -> int: ...


class DrawPlan(nn.Module):
    """The streams of a transform side by side: uniform numbers, then integers, then normal numbers.

    Call it with the digest of seed and epoch, int32 [2, 1], and the positions of the samples. No buffer is part of a state dict.
    """

    names_2S: Tensor
    stream_N: Tensor
    counters_N: Tensor
    quantiles: Tensor

    def __init__(self, draws: Sequence[Draw], *, few: int | None = None) -> None:
        """Plan all draws, or those of at most `few` words; the others are drawn when they are used."""
        super().__init__()
        kinds = ("uniform", "integers", "normal")
        chosen = [draw for draw in draws if few is None or draw.words <= few]
        self.later = {draw.name for draw in draws} - {draw.name for draw in chosen}
        chosen.sort(key=lambda draw: kinds.index(draw.kind))  # stable: streams that an operation declares in a row stay so
        cpu = torch.device("cpu")
        self.starts: dict[str, int] = {}
        totals = dict.fromkeys(kinds, 0)
        for draw in chosen:
            self.starts[draw.name] = totals[draw.kind]
            totals[draw.kind] += draw.words
        self.uniforms, self.integers = totals["uniform"], totals["integers"]
        names = [digest_halves(draw.name, cpu) for draw in chosen] or [torch.zeros(2, 0, dtype=torch.int32)]
        counts = torch.tensor([draw.words for draw in chosen], dtype=torch.int64)
        counters = [folded_counters(draw.words, cpu) for draw in chosen] or [torch.zeros(0, dtype=torch.int32)]
        self.register_buffer("names_2S", torch.cat(names, dim=1), persistent=False)
        self.register_buffer("stream_N", torch.repeat_interleave(torch.arange(len(chosen)), counts), persistent=False)
        self.register_buffer("counters_N", torch.cat(counters), persistent=False)
        self.register_buffer("quantiles", normal_quantiles(cpu) if totals["normal"] else torch.zeros(0), persistent=False)

    def forward(self, epoch_21: Tensor, positions_B: Tensor) -> DrawnNumbers:
        """Return the numbers of the samples at these positions of an epoch."""
        bases_2B = sample_bases(epoch_21, positions_B)
        first_BS, second_BS = mixed(bases_2B[:, :, None] ^ self.names_2S[:, None])
        keys_BN = folded(first_BS).index_select(1, self.stream_N).bitwise_xor_(self.counters_N)
        words_BN = products_(keys_BN, second_BS.index_select(1, self.stream_N))
        return DrawnNumbers(self, words_BN, bases_2B)


class DrawnNumbers:
    """Numbers of a plan, and the bases of the streams that are not in it."""

    def __init__(self, plan: DrawPlan, words_BN: Tensor, bases_2B: Tensor) -> None:
        middle, end = plan.uniforms, plan.uniforms + plan.integers
        self._starts, self._later = plan.starts, plan.later
        self._bases_2B = bases_2B
        self._uniform_BN = as_uniform(words_BN[:, :middle])
        self._wide_BN = as_wide(words_BN[:, middle:end])
        self._normal_BM = plan.quantiles[_halves(words_BN[:, end:])] if end < words_BN.shape[1] else self._uniform_BN
        self._rows: slice | Tensor | None = None
        self._suffix = ""

    def __len__(self) -> int:
        everything = int(self._bases_2B.shape[1])
        if self._rows is None:
            return everything
        return len(range(*self._rows.indices(everything))) if isinstance(self._rows, slice) else len(self._rows)

    def _copy(self) -> DrawnNumbers:
        copy = object.__new__(DrawnNumbers)
        copy._starts, copy._later, copy._bases_2B = self._starts, self._later, self._bases_2B
        copy._uniform_BN, copy._wide_BN, copy._normal_BM = self._uniform_BN, self._wide_BN, self._normal_BM
        copy._rows, copy._suffix = self._rows, self._suffix
        return copy

    def __getitem__(self, rows: slice | Tensor) -> DrawnNumbers:
        part = self._copy()
        part._rows = rows if self._rows is None else torch.arange(self._bases_2B.shape[1], device=self._bases_2B.device)[self._rows][rows]
        return part

    def scoped(self, suffix: str) -> DrawnNumbers:
        """Return the numbers for an operation whose streams are declared with this suffix."""
        part = self._copy()
        part._suffix = suffix
        return part

    def uniform(self, name: str, count: int = 1) -> Tensor:
        """Return float32 [B, count], multiples of 2^-24 in [0, 1)."""
        name += self._suffix
        if name not in self._starts:
            return self._keys(name).uniform(name, count)
        return self._taken(self._uniform_BN, self._starts[name], count)

    def integers(self, name: str, high: int | Tensor, count: int = 1) -> Tensor:
        """Return int64 [B, count] from 0 to `high` - 1; `high` may be a tensor that broadcasts to the result."""
        name += self._suffix
        if name not in self._starts:
            return self._keys(name).integers(name, high, count)
        wide_BN = self._taken(self._wide_BN, self._starts[name], count)
        found: Tensor = (wide_BN * high) >> constants(wide_BN.device).thirty_two
        return found

    def normal(self, name: str, count: int = 1) -> Tensor:
        """Return float32 [B, count], standard normal."""
        name += self._suffix
        if name not in self._starts:
            return self._keys(name).normal(name, count)
        return self._taken(self._normal_BM, 2 * self._starts[name], count)

    def _taken(self, numbers_BN: Tensor, start: int, count: int) -> Tensor:
        part = numbers_BN[:, start : start + count]
        return part if self._rows is None else part[self._rows]

    def _keys(self, name: str) -> SampleKeys:
        """Return the same numbers, drawn one stream at a time."""
        if name not in self._later:
            raise ConfigError(
                f"an operation draws {name!r}, which it has not declared; expected one of {', '.join([*self._starts, *self._later])}. "
                "Let its method `draws` name the stream"
            )
        bases_2B = self._bases_2B if self._rows is None else self._bases_2B[:, self._rows]
        return SampleKeys(0, 0, bases_2B[0], bases_2B)  # with bases, seed, epoch and positions decide nothing any more


def _halves(words_BN: Tensor) -> Tensor:
    """Return int32 [B, 2 N]: the lower and the upper half of each word."""
    if not torch.compiler.is_compiling():
        return words_BN.view(torch.uint16).to(torch.int32)
    numbers = constants(words_BN.device)
    lower, upper = words_BN & numbers.low_16, (words_BN >> numbers.sixteen) & numbers.low_16
    return torch.stack([lower, upper], dim=-1).flatten(1)


def few_on(device: torch.device, *, compiled: bool = False) -> int | None:
    """Return the longest stream that a plan should hold on a device; None for all."""
    return None if compiled or all_rows(device) else FEW
