"""The training reader: whole batches of token ids from shards, in an exact order, resumable at any batch.

    from tokenshards.pipeline.shards import open_dataset
    from tokenshards.stem_adaptors.data.loader import TokenLoader

    for batch in TokenLoader(open_dataset(url)):
        batch.ids_BLQ, batch.labels_B

Shapes: B samples of this rank, L sites, Q ids per site, N samples of an epoch, C classes, D dimensions of a ragged layout's shape.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.batch_reader import BatchReader, TrainingData, class_tables, parts_of
from tokenshards.stem_adaptors.data.device_copies import Copied, DeviceCopies
from tokenshards.stem_adaptors.data.given import loader_config, require_data
from tokenshards.stem_adaptors.data.loader_state import LoaderState
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.order import epoch_steps, rank_positions
from tokenshards.stem_adaptors.data.prefetch import Prefetcher
from tokenshards.stem_adaptors.data.selection import Selection, sample_count
from tokenshards.stem_adaptors.ranks import found_ranks

__all__ = ["BatchReader", "TokenLoader", "TrainingData", "check_ranks", "given_ranks", "initial_state"]


class TokenLoader:
    """Epoch after epoch of batches of one rank, made ahead by a thread.

    >>> loader = tokenshards.TokenLoader(tokenshards.open_dataset("photos.tokens"), batch_size=24)
    >>> [tuple(batch.ids_BLQ.shape) for batch in loader]  # one epoch, shuffled
    [(24, 256, 2), (24, 256, 2), (24, 256, 2)]
    >>> loader.state_dict()["epoch"]  # where load_state_dict continues
    1

    Each iteration is a whole epoch: after `next(iter(loader))`, or a `break`, a new iteration begins the next epoch at its first batch (in
    the order `sequential`, the whole set again). Only a place given to `load_state_dict` is continued in the middle of its epoch, once.

    An image that is stored with several views comes once an epoch. Seed and epoch draw the view; the order `sequential` reads view 0.

    Every rank gets the same number of steps. Rank r of R takes every R-th sample of a global batch, from r on; where R does not divide the
    batch, the first ranks take one sample more. With the orders `windowed` and `sequential`, the ranks of a machine share decoded windows
    through files of the cache folder. One iterator at a time: a new iterator ends the older one.
    """

    def __init__(
        self,
        data: TrainingData,
        config: LoaderConfig | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        device: torch.device | str | None = None,
        classes: Sequence[int | str] | None = None,
        label_maps: bool = False,
        **settings: Any,
    ) -> None:
        """Open the data. Batches are moved to `device`; to a GPU from page-locked memory, on a stream of their own.

        `settings` are fields of LoaderConfig by name, such as `batch_size=64`; they hold in place of those of `config`.
        `classes`: the names that labels index, such as those of a run, by default the data's own. Images of other classes get the label
        -1, after a warning. `label_maps`: batches hold the class of each pixel, of data that were tokenized with masks.

        Without `rank` and `world_size` the loader asks torch.distributed, or else torchrun's environment, each time that an iteration
        begins: a process group may be joined after the loader was made.

        Raises ConfigError where the data have none of `classes`, where batch size and ranks do not fit, where no batch would come, or where
        the cache budget is too small. Errors of decoding, such as CorruptObjectError naming shard and rows, come from here or from the
        iterators.
        """
        require_data(data)
        self.data, self.config = data, loader_config(config, settings)
        self._finds_ranks = rank is None and world_size is None
        self.rank, self.world_size = given_ranks(rank, world_size)
        self.device = None if device is None else torch.device(device)
        if self.device == torch.device("cuda"):
            # CUDA's current device belongs to a thread, and another thread moves the batches.
            self.device = torch.device("cuda", torch.cuda.current_device())
        check_ranks(data, self.config, self.rank, self.world_size)
        self._classes, self._label_maps = None if classes is None else class_tables(data, classes), label_maps
        self.classes: tuple[int | str, ...] = data.classes if classes is None else tuple(classes)
        """Labels in the order of their class index."""
        self._reader = BatchReader(data, self.config, self.world_size, tables=self._classes, label_maps=self._label_maps)
        self._state = initial_state(data, self.config)
        self._resumed = False  # the next pass continues at a place that load_state_dict set
        self._copies = DeviceCopies(self.device)
        self._batches: Prefetcher[Copied] | None = None

    def __repr__(self) -> str:
        config, device = self.config, None if self.device is None else str(self.device)
        ranks = f"{self.rank} of {self.world_size}" if self.world_size > 1 else None
        return short_repr(
            self, data=self.data, batches=len(self), batch_size=config.batch_size, order=config.order, rank=ranks, device=device
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files and threads; a copy in another process opens its own."""
        return {**self.__dict__, "_reader": None, "_copies": None, "_batches": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reader = BatchReader(self.data, self.config, self.world_size, tables=self._classes, label_maps=self._label_maps)
        self._copies = DeviceCopies(self.device)

    def __len__(self) -> int:
        return epoch_steps(sample_count(self.data), self.config.batch_size, self.config.end)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield a whole epoch, the one after an epoch that was begun; after `load_state_dict`, the rest of the epoch of that state.

        The state moves with each batch, and is the start of the next epoch after the last one.
        """
        state = self._state
        return self._run(state if self._resumed or not state.next_global_index else state.next_epoch())

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """Yield all of one epoch, whatever the state. The state is then the start of the epoch after it."""
        return self._run(replace(self._state, epoch=epoch, next_global_index=0))

    def state_dict(self) -> dict[str, Any]:
        """Return, as plain JSON, which batches have been delivered. Batches made ahead do not count."""
        return self._state.to_json()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration continue where `state` was taken, with any number of ranks.

        Raises ConfigError naming the field, where the state belongs to other data or another order.
        """
        self._state, self._resumed = self._state.resume(state), True

    def close(self) -> None:
        """Stop all background work. A loader that is no longer referenced needs no call."""
        if self._batches is not None:
            self._batches.close()
        self._reader.close()

    def _run(self, state: LoaderState) -> Generator[Batch, None, None]:
        if self._batches is not None:
            self._batches.close()
        if self._finds_ranks and (found := found_ranks()) != (self.rank, self.world_size):
            check_ranks(self.data, self.config, *found)
            self._reader.close()
            self._reader = BatchReader(self.data, self.config, found[1], tables=self._classes, label_maps=self._label_maps)
            self.rank, self.world_size = found
        size = self.config.batch_size
        batches = self._batches = Prefetcher(self._made(state), self.config.prefetch_batches)
        with closing(batches):
            for copied in batches:
                state = self._state = replace(state, next_global_index=state.next_global_index + size)
                self._resumed = False
                yield self._copies.take(copied)
        self._state, self._resumed = state.next_epoch(), False

    def _made(self, state: LoaderState) -> Iterator[Copied]:
        start, size = state.next_global_index, self.config.batch_size
        steps = epoch_steps(sample_count(self.data), size, self.config.end, start=start)
        for begin in range(start, start + steps * size, size):
            yield self._copies.begin(self._reader.read(state.epoch, rank_positions(begin, size, self.rank, self.world_size)))


def given_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the ranks given, or those that `found_ranks` finds. Raises ConfigError where only one of the two is given."""
    if rank is None and world_size is None:
        return found_ranks()
    if rank is None or world_size is None:
        raise ConfigError(f"rank is {rank} and world_size is {world_size}; expected both or neither")
    return rank, world_size


def check_ranks(data: TrainingData, config: LoaderConfig, rank: int, world_size: int) -> None:
    """Raise ConfigError unless every rank has a share of a global batch and an epoch has at least one batch."""
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank} of world_size {world_size}; expected 0 to {world_size - 1}")
    if config.batch_size < world_size:
        raise ConfigError(f"batch_size is {config.batch_size}; expected at least 1 sample for each of the {world_size} ranks that share it")
    if not epoch_steps(sample_count(data), config.batch_size, config.end):
        raise ConfigError(
            f"batch_size is {config.batch_size}, of {sample_count(data)} samples; an epoch with end='{config.end}' would have no batch. "
            "Use a smaller batch_size, or end='pad', or data that is not empty"
        )


def initial_state(data: TrainingData, config: LoaderConfig) -> LoaderState:
    """Return the state at the start of epoch 0; reads the manifests for their sha256."""
    parts = parts_of(data)
    datasets = [part.dataset if isinstance(part, Selection) else part for part in parts]
    windowed = config.order == "windowed"
    return LoaderState(
        manifest=[dataset.digest for dataset in datasets],
        seed=config.seed,
        mode=config.order,
        window=config.window_shards if windowed else None,
        lanes=config.lanes if windowed else None,
        end=config.end,
        mix_weights=list(data.weights) if isinstance(data, Mix) else None,
        subset=[part.digest if isinstance(part, Selection) else None for part in parts],
    )
