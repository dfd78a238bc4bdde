"""What is said before any training: the groups, the bytes, how many images each memory holds, and the time that all of it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.continual.class_groups import ClassGroups
from tokenshards.stem_adaptors.continual.continual_config import ContinualRequest
from tokenshards.stem_adaptors.continual.replay_memory import quotas
from tokenshards.stem_adaptors.continual.result import Line
from tokenshards.stem_adaptors.curves.both_sets import BothSets
from tokenshards.stem_adaptors.curves.byte_sizes import byte_text

__all__ = ["understood"]

MOST_NAMES = 12
"""Classes that are named in a line."""


def understood(request: ContinualRequest, sets: BothSets, groups: Sequence[ClassGroups], lines: Sequence[Line]) -> Iterator[str]:
    """Yield the lines. `groups`: of each seed."""
    counts = {str(name): count // sets.data.views for name, count in zip(sets.data.classes, sets.data.manifest.class_counts, strict=True)}
    yield f"{counted(len(groups[0].names), 'class')} in {request.steps} steps, in an order that each seed draws:"
    for seed, one in enumerate(groups):
        parts = [_names(one.names_of(step), request.steps) for step in range(request.steps)]
        yield f"  seed {seed}: {'; '.join(f'{step + 1}: {part}' for step, part in enumerate(parts))}"
    new = [sum(counts[name] for name in one.names_of(step)) for one in groups for step in range(request.steps)]
    yield f"{_range(new)} new images a step; a model learns from them and from its memory, and starts from the weights of the step before"
    for line in lines:
        if line.absent:
            yield f"{_name(line)}: left out: {line.absent}"
        elif line.budget is not None and (images := line.chains[0].images) is not None:
            old = [one.seen(step - 1) for one in groups[:1] for step in range(1, request.steps)]
            shares = ", ".join(_kept(quotas(images, classes), max(counts.values())) for classes in old)
            held = f"{counted(images, 'image')} of {line.bytes_per_image:,.1f} bytes"
            steps = "step 2" if request.steps == 2 else f"steps 2 to {request.steps}"
            yield f"{_name(line)}: {held}; in {steps} of each class seen before {shares}"
            if images >= sets.stock.labelled:
                yield f"note: {_name(line)} holds all images"
    chains = [chain for line in lines for chain in line.chains]
    firsts = len({chain.first.key for chain in chains})
    trainings = firsts + len({chain.key for chain in chains}) * (request.steps - 1)
    minutes = trainings * request.minutes
    in_all = f"{minutes:,.4g} minutes of {'one core' if request.device == 'cpu' else 'a GPU'} in all"
    yield f"{counted(trainings, 'training')} of {request.minutes:g} minutes each, {in_all}; sides of the same images share step 1"


def _name(line: Line) -> str:
    return line.side if line.budget is None else f"{line.side}, {byte_text(line.budget)}"


def _names(names: Sequence[str], steps: int) -> str:
    most = max(1, MOST_NAMES // steps)
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most:,} more"


def _kept(shares: Sequence[int], largest: int) -> str:
    """Return how many images of a class are kept. `largest`: images of the largest class."""
    return "all" if min(shares) >= largest else _range(shares)


def _range(numbers: Sequence[int]) -> str:
    low, high = int(np.min(numbers)), int(np.max(numbers))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
