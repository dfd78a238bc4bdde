"""Random numbers that belong to a sample: functions of (seed, epoch, position, operation, index), without a generator or a state.

A sample therefore gets the same augmentation in every batch, on every rank and after every resume. All hashing uses int32 tensor
operations that wrap around, so a CPU and a GPU give the same bits.

Shapes: B samples, N numbers per sample.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenshards.stem_adaptors.data.batch import Batch

__all__ = [
    "SampleKeys",
    "all_rows",
    "as_uniform",
    "as_wide",
    "constants",
    "digest_halves",
    "folded",
    "folded_counters",
    "mixed",
    "normal_quantiles",
    "products_",
    "sample_bases",
]

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
            epoch_21 = digest_halves(f"{self.seed} {self.epoch}", self.positions_B.device)
            object.__setattr__(self, "bases_2B", sample_bases(epoch_21, self.positions_B))

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
        first_B, second_B = mixed(self.bases_2B ^ digest_halves(operation, self.positions_B.device))
        # The mixer begins with a shift and a xor. Doing them before counter and key meet costs N + B operations, not N * B.
        return products_(folded_counters(count, self.positions_B.device) ^ folded(first_B)[:, None], second_B[:, None])

    def uniform(self, operation: str, count: int = 1) -> Tensor:
        """Return float32 [B, count], multiples of 2^-24 in [0, 1)."""
        return as_uniform(self.words(operation, count))

    def integers(self, operation: str, high: int | Tensor, count: int = 1) -> Tensor:
        """Return int64 [B, count] from 0 to `high` - 1; `high` (at least 1, below 2^31) may be a tensor that broadcasts to the result."""
        found: Tensor = (as_wide(self.words(operation, count)) * high) >> constants(self.positions_B.device).thirty_two
        return found

    def normal(self, operation: str, count: int = 1) -> Tensor:
        """Return float32 [B, count], standard normal to 16 bits: each half of a hash word picks one of the 65,536 `normal_quantiles`.

        Mean 0 and variance 1 are exact; the tails end at 4.33 standard deviations.
        """
        halves = self.words(operation, (count + 1) // 2).view(torch.uint16).to(torch.int32)
        table = normal_quantiles(self.positions_B.device)
        return table.index_select(0, halves.flatten()).view(halves.shape)[:, :count]

    def chosen(self, operation: str, share: float) -> Tensor:
        """Return bool [B]: True for a `share` of all samples."""
        return self.uniform(operation)[:, 0] < share


@functools.lru_cache(256)
def digest_halves(text: str, device: torch.device) -> Tensor:
    """Return int32 [2, 1]: the two 32-bit halves of a 64-bit digest of the text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    halves = [int.from_bytes(half, "little", signed=True) for half in (digest[:4], digest[4:])]
    with torch.inference_mode(False):  # it is kept for all: a graph that torch compiles takes no tensor of an inference
        return torch.tensor(halves, dtype=torch.int32, device=device)[:, None]


@functools.lru_cache(64)
def folded_counters(count: int, device: torch.device) -> Tensor:
    """Return int32 [count]: the counters of hash words, after the mixer's first step."""
    return folded(torch.arange(count, dtype=torch.int32, device=device).mul_(constants(device).step))


class _Constants:
    """The numbers of the mixer. `whole` and `long` make them tensors of int32 and int64, or leave them Python numbers."""

    def __init__(self, whole: Callable[[int], Any] = int, long: Callable[[int], Any] = int, real: Callable[[float], Any] = float) -> None:
        self.first, self.second, self.step = whole(_FIRST), whole(_SECOND), whole(_STEP)
        self.eight, self.fifteen, self.sixteen = whole(8), whole(15), whole(16)
        self.low_16, self.low_17, self.low_24 = whole(0xFFFF), whole(0x1FFFF), whole(0xFFFFFF)
        self.low_32, self.thirty_two = long(0xFFFFFFFF), long(32)
        self.unit = real(2.0**-24)


_PLAIN = _Constants()
# On a CPU a Python number would triple the time of an operation on a small tensor.
_ON_CPU = _Constants(functools.partial(torch.tensor, dtype=torch.int32), functools.partial(torch.tensor, dtype=torch.int64), torch.tensor)


def constants(device: torch.device) -> _Constants:
    """Return the numbers of the mixer in the form that is fastest on the device."""
    return _PLAIN if all_rows(device) else _ON_CPU


@functools.cache
def normal_quantiles(device: torch.device) -> Tensor:
    """Return float32 [65536]: quantiles of N(0, 1) at the midpoints (i + 0.5) / 65536, scaled to unit variance."""
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles = torch.special.ndtri(middles)
    unit: Tensor = quantiles / quantiles.square().mean().sqrt()
    return unit.float().to(device)


def sample_bases(epoch_21: Tensor, positions_B: Tensor) -> Tensor:
    """Return int32 [2, B]: two hash words of each sample, made of the digest of seed and epoch and of the position."""
    low_B, high_B = positions_B.to(torch.int32), (positions_B >> 32).to(torch.int32)
    return mixed(mixed(low_B ^ epoch_21) ^ high_B)


def as_uniform(words: Tensor) -> Tensor:
    """Return float32 multiples of 2^-24 in [0, 1): the upper 24 bits of the words."""
    numbers = constants(words.device)
    found: Tensor = ((words >> numbers.eight) & numbers.low_24).float().mul_(numbers.unit)
    return found


def as_wide(words: Tensor) -> Tensor:
    """Return the words as int64 from 0 to 2^32 - 1."""
    found: Tensor = words.long() & constants(words.device).low_32
    return found


def mixed(x: Tensor) -> Tensor:
    """Return int32 x, hashed by lowbias32."""
    return products_(folded(x))


def folded(x: Tensor) -> Tensor:
    """Return x ^ (x >> 16), the mixer's first step."""
    # A right shift of int32 copies the sign. The masks turn it into the logical shift that the mixer defines.
    numbers = constants(x.device)
    found: Tensor = (x >> numbers.sixteen).bitwise_and_(numbers.low_16).bitwise_xor_(x)
    return found


def products_(x: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the rest of the mixer; `key` is mixed in between the two products. Writes into x and one more buffer."""
    numbers = constants(x.device)
    x.mul_(numbers.first)
    if key is not None:
        x.bitwise_xor_(key)
    second = x >> numbers.fifteen
    second.bitwise_and_(numbers.low_17).bitwise_xor_(x).mul_(numbers.second)
    torch.bitwise_right_shift(second, numbers.sixteen, out=x)
    return x.bitwise_and_(numbers.low_16).bitwise_xor_(second)


def all_rows(device: torch.device) -> bool:
    """Whether an operation computes all samples, and not only the samples that it changes.

    Only a CPU computes fewer, and only outside of torch.compile: asking which samples change would let the host wait for a GPU.
    """
    return device.type != "cpu" or torch.compiler.is_compiling()
