"""Random numbers that belong to a sample: functions of (seed, epoch, position, operation, index), without a generator or a state.

A sample therefore gets the same augmentation in every batch, on every rank and after every resume. All hashing uses int32 tensor
operations that wrap around, so a CPU and a GPU give the same bits.

Shapes: B samples, N numbers per sample.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenshards.stem_adaptors.data.batch import Batch

__all__ = ["SampleKeys", "affected_rows", "normal_quantiles"]

# lowbias32 is a 32-bit mixer found by search (C. Wellons, "Prospecting for hash functions", 2018). The last number is 2^32 / golden ratio.
_FIRST, _SECOND, _STEP = 0x7FEB352D, 0x846CA68B - (1 << 32), 0x9E3779B9 - (1 << 32)


@dataclass(frozen=True, slots=True)
class SampleKeys:
    """The random numbers of some samples. Each operation has a name, so that two operations never share numbers."""

    seed: int
    epoch: int
    positions_B: Tensor
    """int64 place of each sample in its epoch, on the device where the numbers are wanted."""
    bases_2B: Tensor = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    """int32 [2, B]: two hash words of each sample, made of seed, epoch and position."""

    def __post_init__(self) -> None:
        if self.bases_2B is None:
            low_B, high_B = self.positions_B.to(torch.int32), (self.positions_B >> 32).to(torch.int32)
            bases_2B = _mix(_mix(low_B ^ _halves(f"{self.seed} {self.epoch}", self.positions_B.device)) ^ high_B)
            object.__setattr__(self, "bases_2B", bases_2B)

    @classmethod
    def from_batch(cls, batch: Batch) -> SampleKeys:
        """Return the keys of a batch's samples."""
        return cls(batch.seed, batch.epoch, batch.positions_B)

    def __len__(self) -> int:
        return int(self.positions_B.shape[0])

    def __getitem__(self, rows: slice | Tensor) -> SampleKeys:
        """Return the keys of some of the samples."""
        return SampleKeys(self.seed, self.epoch, self.positions_B[rows], self.bases_2B[:, rows])

    def words(self, operation: str, count: int) -> Tensor:
        """Return hash words, int32 [B, count]; word i is the same for every count."""
        first_B, second_B = _mix(self.bases_2B ^ _halves(operation, self.positions_B.device))
        counters_N = torch.arange(count, dtype=torch.int32, device=self.positions_B.device).mul_(self._numbers.step)
        # The mixer begins with a shift and a xor. Doing them before counter and key meet costs N + B operations, not N * B.
        return _products_(_folded(counters_N) ^ _folded(first_B)[:, None], second_B[:, None])

    def uniform(self, operation: str, count: int = 1) -> Tensor:
        """Return float32 [B, count], multiples of 2^-24 in [0, 1)."""
        numbers = self._numbers
        return ((self.words(operation, count) >> numbers.eight) & numbers.low_24).float().mul_(numbers.unit)

    def integers(self, operation: str, high: int | Tensor, count: int = 1) -> Tensor:
        """Return int64 [B, count] from 0 to `high` - 1; `high` (at least 1, below 2^31) may be a tensor that broadcasts to the result."""
        return ((self.words(operation, count).long() & self._numbers.low_32) * high) >> self._numbers.thirty_two

    def normal(self, operation: str, count: int = 1) -> Tensor:
        """Return float32 [B, count], standard normal to 16 bits: each half of a hash word picks one of the 65,536 `normal_quantiles`.

        Mean 0 and variance 1 are exact; the tails end at 4.33 standard deviations.
        """
        halves = self.words(operation, (count + 1) // 2).view(torch.uint16).to(torch.int32)
        table = normal_quantiles(self.positions_B.device)
        return table.index_select(0, halves.flatten()).view(halves.shape)[:, :count]

    @property
    def _numbers(self) -> _Numbers:
        return _numbers(self.positions_B.device)

    def chosen(self, operation: str, share: float) -> Tensor:
        """Return bool [B]: True for a `share` of all samples."""
        return self.uniform(operation)[:, 0] < share


@functools.lru_cache(256)
def _halves(text: str, device: torch.device) -> Tensor:
    """Return int32 [2, 1]: the two 32-bit halves of a 64-bit digest of the text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    halves = [int.from_bytes(half, "little", signed=True) for half in (digest[:4], digest[4:])]
    return torch.tensor(halves, dtype=torch.int32, device=device)[:, None]


class _Numbers:
    """Constants as tensors of matching dtype: a Python number would triple the time of an operation on a small tensor."""

    def __init__(self, device: torch.device) -> None:
        whole = functools.partial(torch.tensor, dtype=torch.int32, device=device)
        self.first, self.second, self.step = whole(_FIRST), whole(_SECOND), whole(_STEP)
        self.eight, self.fifteen, self.sixteen = whole(8), whole(15), whole(16)
        self.low_16, self.low_17, self.low_24 = whole(0xFFFF), whole(0x1FFFF), whole(0xFFFFFF)
        self.low_32, self.thirty_two = torch.tensor(0xFFFFFFFF, device=device), torch.tensor(32, device=device)
        self.unit = torch.tensor(2.0**-24, device=device)


_numbers = functools.cache(_Numbers)


@functools.cache
def normal_quantiles(device: torch.device) -> Tensor:
    """Return float32 [65536]: quantiles of N(0, 1) at the midpoints (i + 0.5) / 65536, scaled to unit variance."""
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles = torch.special.ndtri(middles)
    unit: Tensor = quantiles / quantiles.square().mean().sqrt()
    return unit.float().to(device)


def _mix(x: Tensor) -> Tensor:
    """Return int32 x, hashed by lowbias32."""
    return _products_(_folded(x))


def _folded(x: Tensor) -> Tensor:
    """Return x ^ (x >> 16), the mixer's first step."""
    # A right shift of int32 copies the sign. The masks turn it into the logical shift that the mixer defines.
    numbers = _numbers(x.device)
    return (x >> numbers.sixteen).bitwise_and_(numbers.low_16).bitwise_xor_(x)


def _products_(x: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the rest of the mixer; `key` is mixed in between the two products. Writes into x and one more buffer."""
    numbers = _numbers(x.device)
    x.mul_(numbers.first)
    if key is not None:
        x.bitwise_xor_(key)
    mixed = x >> numbers.fifteen
    mixed.bitwise_and_(numbers.low_17).bitwise_xor_(x).mul_(numbers.second)
    torch.bitwise_right_shift(mixed, numbers.sixteen, out=x)
    return x.bitwise_and_(numbers.low_16).bitwise_xor_(mixed)


def affected_rows(hit_B: Tensor) -> Tensor:
    """Return the rows that an operation computes: the rows hit on a CPU, all rows on a GPU.

    On a GPU the unneeded rows cost less than a synchronisation that reads which rows are hit.
    """
    if hit_B.device.type == "cpu":
        return hit_B.nonzero().flatten()
    return torch.arange(len(hit_B), device=hit_B.device)
