"""Several datasets read as one, in exact proportions.

Shapes: B draws, C draws of one cycle.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import ConfigError, OtherTokenizerError, shorten
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.data.selection import Selection, sample_count

__all__ = ["Mix", "mix"]

Ints: TypeAlias = npt.NDArray[np.int64]

MAX_CYCLE = 1 << 21


class Mix:
    """Datasets whose ids mean the same, drawn from in proportion to their weights. An epoch has as many draws as all datasets have samples.

    Each dataset is read in its own order, epoch after epoch, so no sample comes again before every sample of its dataset has come.
    """

    def __init__(self, parts: Sequence[tuple[TokenDataset | Selection, float]]) -> None:
        if not parts:
            raise ConfigError("a mix of 0 datasets; expected at least 1")
        self.parts = tuple(data for data, _ in parts)
        self.weights = _whole_weights([weight for _, weight in parts])
        """Draws from each dataset in one cycle."""
        first = self.parts[0].spec
        for number, data in enumerate(self.parts):
            if data.spec.meaning != first.meaning:
                raise OtherTokenizerError(
                    f"dataset {number} of the mix was made by the tokenizer {data.spec.fingerprint[:12]}…; dataset 0 by "
                    f"{first.fingerprint[:12]}…. Ids of two tokenizers cannot be mixed; tokenize both with one (--tokenizer)"
                )
            if not len(data):
                raise ConfigError(f"dataset {number} of the mix has no rows; leave it out")
        self.classes: tuple[int | str, ...] = tuple(dict.fromkeys(name for data in self.parts for name in data.classes))
        """Union of the class tables by name, in the order of first appearance; labels index this table."""
        self._part_C, self._rank_C = _cycle(self.weights)

    def __len__(self) -> int:
        return sum(sample_count(data) for data in self.parts)

    def __repr__(self) -> str:
        return f"Mix(rows={len(self)}, datasets={len(self.parts)}, weights={self.weights}, classes={len(self.classes)})"

    @property
    def dataset(self) -> TokenDataset:
        """The first dataset, which stands for what all of them share: spec, codebook, tokenizer."""
        data = self.parts[0]
        return data.dataset if isinstance(data, Selection) else data

    @property
    def spec(self) -> TokenizerSpec:
        """What the ids mean, in all datasets."""
        return self.parts[0].spec

    def schedule(self, draws_B: Ints) -> tuple[Ints, Ints]:
        """Return, for the draws 0, 1, … of all epochs, the dataset of each draw and the number of the draw within that dataset.

        Among the first p draws each dataset has p * weight / sum(weights) draws to within 1, and exactly that at the end of each cycle.
        """
        cycle_B, place_B = np.divmod(draws_B, len(self._part_C))
        part_B = self._part_C[place_B]
        return part_B, cycle_B * np.array(self.weights)[part_B] + self._rank_C[place_B]


def mix(parts: Sequence[tuple[TokenDataset | Selection, float]]) -> Mix:
    """Return a mix of (dataset or selection, weight) pairs. Decimal weights are taken as written, so 0.1 is a tenth.

    Raises OtherTokenizerError unless ids mean the same in all datasets (`TokenizerSpec.meaning`), ConfigError for weights that are not
    positive or whose proportions repeat only after more than 2,097,152 draws.
    """
    return Mix(parts)


def _whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    try:
        exact = [Fraction(str(weight)) for weight in weights]
    except ValueError:
        exact = []
    if not exact or min(exact) <= 0:
        raise ConfigError(f"the weights of the mix are {shorten(list(weights))}; expected positive numbers")
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    shared = math.gcd(*whole)
    whole = [weight // shared for weight in whole]
    if sum(whole) > MAX_CYCLE:
        raise ConfigError(
            f"the weights of the mix are {shorten(list(weights))}, in whole numbers {shorten(whole)}; "
            f"expected a sum of at most {MAX_CYCLE:,}. Round them"
        )
    return tuple(whole)


def _cycle(weights: tuple[int, ...]) -> tuple[Ints, Ints]:
    """Return the dataset of each draw of one cycle, and the number of each draw within its dataset.

    Draw k of a dataset may take places from floor(k * C / w) to ceil((k + 1) * C / w) - 1, which keeps every prefix within 1 of its share.
    Such windows can always be met (Baruah et al., Proportionate Progress, 1996), and earliest deadline first meets them.
    """
    total = sum(weights)
    part = np.repeat(np.arange(len(weights)), weights)
    rank = np.concatenate([np.arange(weight) for weight in weights])
    weight = np.array(weights)[part]
    releases = rank * total // weight
    deadlines = -(-(rank + 1) * total // weight)
    order = np.lexsort((deadlines, releases))
    waiting: list[tuple[int, int]] = []
    jobs = iter(zip(releases[order].tolist(), deadlines[order].tolist(), order.tolist(), strict=True))
    job = next(jobs, None)
    chosen = []
    for place in range(total):
        while job is not None and job[0] <= place:
            heapq.heappush(waiting, job[1:])
            job = next(jobs, None)
        chosen.append(heapq.heappop(waiting)[1])
    return part[chosen], rank[chosen]
