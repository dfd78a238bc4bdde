"""The training reader: whole batches of token ids from shards, in an exact order, resumable at any batch.

    from tokenshards.pipeline.shards import open_dataset
    from tokenshards.stem_adaptors.data.loader import TokenLoader

    for batch in TokenLoader(open_dataset(url)):
        batch.ids_BLQ, batch.labels_B

Shapes: B samples of this rank, L sites, Q ids per site, N samples of an epoch, C classes, D dimensions of a ragged layout's shape.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.device_copies import Copied, DeviceCopies
from tokenshards.stem_adaptors.data.loader_state import LoaderState
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.order import epoch_steps, rank_positions
from tokenshards.stem_adaptors.data.prefetch import Prefetcher
from tokenshards.stem_adaptors.data.selection import Selection, sample_count
from tokenshards.stem_adaptors.data.sources import Rows, join_rows, open_source
from tokenshards.stem_adaptors.ranks import found_ranks

__all__ = ["BatchReader", "TokenLoader", "TrainingData", "check_ranks", "given_ranks", "initial_state"]

Ints: TypeAlias = npt.NDArray[np.int64]
TrainingData: TypeAlias = TokenDataset | Selection | Mix
"""Data to train on. All three types have `spec` and `classes` and work with `sample_count`."""


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
        **settings: Any,
    ) -> None:
        """Open the data. Batches are moved to `device`; to a GPU from page-locked memory, on a stream of their own.

        `settings` are fields of LoaderConfig by name, such as `batch_size=64`; they hold in place of those of `config`.
        Without `rank` and `world_size` the loader asks torch.distributed, or else torchrun's environment, each time that an iteration
        begins: a process group may be joined after the loader was made.

        Raises ConfigError where batch size and ranks do not fit, where no batch would come, or where the cache budget is too small. Errors
        of decoding, such as CorruptObjectError naming shard and rows, come from here or from the iterators.
        """
        self.data, self.config = data, replace(config or LoaderConfig(), **settings)
        self._finds_ranks = rank is None and world_size is None
        self.rank, self.world_size = given_ranks(rank, world_size)
        self.device = None if device is None else torch.device(device)
        if self.device == torch.device("cuda"):
            # CUDA's current device belongs to a thread, and another thread moves the batches.
            self.device = torch.device("cuda", torch.cuda.current_device())
        check_ranks(data, self.config, self.rank, self.world_size)
        self._reader = BatchReader(data, self.config, self.world_size)
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

    @property
    def classes(self) -> tuple[int | str, ...]:
        """Labels in the order of their class index."""
        return self.data.classes

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
            self._reader = BatchReader(self.data, self.config, found[1])
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


class BatchReader:
    """Makes the batch for given positions of an epoch. For one thread at a time."""

    def __init__(self, data: TrainingData, config: LoaderConfig, world_size: int = 1, *, workers: int = 1) -> None:
        """Open every dataset; `workers`: processes that read for one rank. Raises what `TokenLoader` raises."""
        self._mix = data if isinstance(data, Mix) else None
        parts = _parts(data)
        self._sources = [open_source(part, config, world_size, shared=world_size * workers > 1) for part in parts]
        self._tables = [_class_map(part, data.classes) for part in parts]
        self._size, self._seed = sample_count(data), config.seed
        self._pad_id = max(data.spec.vocabulary)

    def read(self, epoch: int, positions_B: Ints) -> Batch:
        """Return the samples at some positions. Positions from N on repeat the first positions with weight 0."""
        rows = self._take(epoch * self._size + positions_B % self._size)
        tokens, lengths_B = self._padded(rows.tokens)
        return Batch(
            ids_BLQ=torch.from_numpy(tokens.ids_BLQ.transpose(0, 2, 1)).transpose(1, 2),
            labels_B=torch.from_numpy(rows.labels_B),
            weights_B=torch.from_numpy((positions_B < self._size).astype(np.float32)),
            positions_B=torch.from_numpy(positions_B),
            rows_B=torch.from_numpy(rows.rows_B),
            epoch=epoch,
            seed=self._seed,
            lengths_B=None if lengths_B is None else torch.from_numpy(lengths_B),
            shapes_BD=None if tokens.shapes_BD is None else torch.from_numpy(tokens.shapes_BD.astype(np.int64)),
        )

    def close(self) -> None:
        """Stop background work of all datasets."""
        for source in self._sources:
            source.close()

    def _take(self, draws_B: Ints) -> Rows:
        if self._mix is None:
            return self._labelled(0, self._sources[0].take(draws_B))
        part_B, own_draws_B = self._mix.schedule(draws_B)
        found = []
        for part in np.unique(part_B).tolist():
            places = np.flatnonzero(part_B == part)
            found.append((places, self._labelled(part, self._sources[part].take(own_draws_B[places]))))
        return join_rows(found, len(draws_B))

    def _labelled(self, part: int, rows: Rows) -> Rows:
        table = self._tables[part]
        return rows if table is None else replace(rows, labels_B=table[rows.labels_B])

    def _padded(self, tokens: TokenBatch) -> tuple[TokenBatch, Ints | None]:
        lengths = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD.prod(axis=1)
        if lengths is None:
            return tokens, None
        ids_BQL = tokens.ids_BLQ.transpose(0, 2, 1)
        # The vocabulary may fill the smallest dtype of the ids; torch has little support for uint64.
        dtype = np.promote_types(ids_BQL.dtype, np.min_scalar_type(self._pad_id))
        ids_BQL = ids_BQL.astype(np.int64 if dtype == np.uint64 else dtype)
        lengths_B = lengths.astype(np.int64)
        real_B1L = (np.arange(ids_BQL.shape[2]) < lengths_B[:, None])[:, None]
        np.copyto(ids_BQL, self._pad_id, where=~real_B1L, casting="unsafe")
        return TokenBatch(ids_BQL.transpose(0, 2, 1), tokens.lengths_B, tokens.shapes_BD), lengths_B


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
    parts = _parts(data)
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


def _parts(data: TrainingData) -> tuple[TokenDataset | Selection, ...]:
    return data.parts if isinstance(data, Mix) else (data,)


def _class_map(part: TokenDataset | Selection, classes: tuple[int | str, ...]) -> Ints | None:
    """Return the index in `classes` of each class index of the dataset, then -1, the entry of samples without a label."""
    own = part.dataset.classes if isinstance(part, Selection) else part.classes
    if own == classes:
        return None
    index = {name: place for place, name in enumerate(classes)}
    return np.array([*(index.get(name, -1) for name in own), -1], np.int64)
