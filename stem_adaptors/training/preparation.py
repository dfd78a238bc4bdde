"""What an objective learns from some samples before the first step of a new training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.selection import sample_count
from tokenshards.stem_adaptors.objectives.base import Objective
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.training_request import TrainRequest

__all__ = ["prepare"]

BATCH_SIZE = 64


def prepare(objective: Objective, request: TrainRequest, ranks: Ranks) -> None:
    """Let the objective, still on the CPU, learn what it needs. Every rank gets what the main rank found."""

    def sample(count: int) -> Iterator[Batch]:
        config = replace(request.loader, batch_size=min(BATCH_SIZE, sample_count(request.data)), end="drop", prefetch_batches=0)
        read = 0
        for batch in TokenLoader(request.data, config, rank=0, world_size=1).epoch(0):
            yield batch
            read += len(batch)
            if read >= count:
                return

    buffers = dict(objective.model.named_buffers())
    for name in objective.prepare(sample):
        ranks.share(buffers[name])
