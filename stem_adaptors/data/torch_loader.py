"""The same batches through torch's own DataLoader and torchdata's StatefulDataLoader, for programs that need their interface.

    steps = StepSampler(dataset, config)
    loader = DataLoader(BatchDataset(dataset, config), batch_size=None, sampler=steps, num_workers=2)

`TokenLoader` needs no worker processes and is faster.

Shapes: B samples of one rank in a step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from torch.utils.data import BatchSampler, Dataset, get_worker_info

from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.given import require_data
from tokenshards.stem_adaptors.data.loader import BatchReader, TrainingData, check_ranks, given_ranks, initial_state
from tokenshards.stem_adaptors.data.loader_state import LoaderState
from tokenshards.stem_adaptors.data.order import epoch_steps, rank_positions
from tokenshards.stem_adaptors.data.selection import sample_count
from tokenshards.stem_adaptors.ranks import found_ranks

__all__ = ["BatchDataset", "Step", "StepSampler"]

PREPARED = (
    "a DataLoader of BatchDataset and StepSampler went through something that divides samples among ranks, such as accelerate's prepare(); "
    "expected to be read as it is, because StepSampler gives each rank its share already. Prepare the model and the optimizer alone, or "
    "prepare DataLoader(tokenshards.TokenSamples(dataset), batch_size=..., shuffle=True), which has one sample an item"
)
"""What to do instead."""

Ints: TypeAlias = npt.NDArray[np.int64]


class Step(NamedTuple):
    """The positions that one rank reads in one step."""

    epoch: int
    positions_B: Ints


class BatchDataset(Dataset[Batch]):
    """A map-style dataset whose items are whole batches. Every reading process opens the data for itself, at its first batch."""

    def __init__(self, data: TrainingData, config: LoaderConfig | None = None, *, world_size: int | None = None) -> None:
        """Without `world_size` that of torch.distributed or of torchrun's environment holds."""
        require_data(data)
        self.data, self.config = data, config or LoaderConfig()
        self.world_size = found_ranks()[1] if world_size is None else world_size
        self._opened: tuple[int, BatchReader] | None = None

    def __getitem__(self, step: Step) -> Batch:
        """Return the batch of one step; raises what `TokenLoader` raises."""
        if self._opened is None or self._opened[0] != os.getpid():
            worker = get_worker_info()
            workers = 1 if worker is None else worker.num_workers
            self._opened = (os.getpid(), BatchReader(self.data, self.config, self.world_size, workers=workers))
        return self._opened[1].read(step.epoch, step.positions_B)

    def __len__(self) -> int:
        """Raise ConfigError: only a program that takes the steps away from `StepSampler` asks, and it would split the batches again."""
        raise ConfigError(PREPARED)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files and windows, so that a worker process opens its own."""
        return {**self.__dict__, "_opened": None}


class StepSampler(BatchSampler):
    """The steps of one rank, one whole epoch per iteration: after an iteration that was begun, the next one begins the next epoch.

    A plain DataLoader asks for steps ahead of delivery. To stop and resume it exactly, keep `state_after(batch)` of the last batch used and
    give that to `resume`. A StatefulDataLoader keeps its place itself.
    """

    def __init__(
        self, data: TrainingData, config: LoaderConfig | None = None, *, rank: int | None = None, world_size: int | None = None
    ) -> None:
        """Without `rank` and `world_size` those of torch.distributed or of torchrun's environment hold. Raises ConfigError."""
        require_data(data)
        self.config, self.size = config or LoaderConfig(), sample_count(data)
        self.rank, self.world_size = given_ranks(rank, world_size)
        check_ranks(data, self.config, self.rank, self.world_size)
        self.next_state = initial_state(data, self.config)
        """The place where the next iteration begins."""

    @property
    def sampler(self) -> Any:  # type: ignore[override]
        """Raise ConfigError: accelerate asks before it divides the steps among ranks, which they are already."""
        raise ConfigError(PREPARED)

    def __len__(self) -> int:
        return epoch_steps(self.size, self.config.batch_size, self.config.end)

    def __iter__(self) -> Iterator[Step]:  # type: ignore[override]
        return _Steps(self)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration at the start of this epoch."""
        self.next_state = replace(self.next_state, epoch=epoch, next_global_index=0)

    def resume(self, state: dict[str, Any]) -> None:
        """Begin the next iteration where `state` was taken, by this class or a TokenLoader. ConfigError names a field that does not fit."""
        self.next_state = self.next_state.resume(state)

    def state_after(self, batch: Batch) -> dict[str, Any]:
        """Return the state of a loader that delivered this batch last."""
        after = int(batch.positions_B[0]) - self.rank + self.config.batch_size
        return replace(self.next_state, epoch=batch.epoch, next_global_index=after).to_json()


class _Steps(Iterator[Step]):
    """One pass over an epoch. A StatefulDataLoader keeps its state for each batch that it asks for, and restores it."""

    def __init__(self, sampler: StepSampler) -> None:
        self._sampler = sampler
        self._state: LoaderState = sampler.next_state

    def __next__(self) -> Step:
        sampler, config, begin = self._sampler, self._sampler.config, self._state.next_global_index
        sampler.next_state = self._state.next_epoch()
        if not epoch_steps(sampler.size, config.batch_size, config.end, start=begin):
            raise StopIteration
        self._state = replace(self._state, next_global_index=begin + config.batch_size)
        return Step(self._state.epoch, rank_positions(begin, config.batch_size, sampler.rank, sampler.world_size))

    def state_dict(self) -> dict[str, Any]:
        return self._state.to_json()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        sampler, config = self._sampler, self._sampler.config
        self._state = self._state.resume(state)
        ended = not epoch_steps(sampler.size, config.batch_size, config.end, start=self._state.next_global_index)
        sampler.set_epoch(self._state.epoch + ended)
