"""Shards become ids in flat memory: threads decode row groups; the order `global` maps a decoded copy of the whole dataset.

Shapes: N rows, B rows asked for, Q ids per site, L sites (the longest row of a batch where they vary), D dimensions of a ragged
layout's shape. Ids are level-major: all L ids of level 0, then of level 1, …
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from filelock import FileLock

from tokenshards.pipeline.canonical import seal, unseal
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, TokenshardsError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.data.cache import GIGABYTE, ShardCopies, copies_folder, decoded_bytes, require_disk

__all__ = ["DecodedRows", "DecodedSet", "array_names", "decode_shards", "decoding_threads", "map_array", "write_rows"]

T = TypeVar("T")
Rows: TypeAlias = npt.NDArray[np.int64]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

FORMAT = 1
SEAL_NAME = "decoded.json"
FOLDER_PREFIX = "decoded-"


class DecodedRows:
    """Rows in arrays, in memory or mapped: `ids` [N, Q, L] and `labels` [N]; ragged: flat `ids`, `offsets` [N + 1], `shapes` [N, D]."""

    def __init__(self, spec: TokenizerSpec, arrays: Arrays) -> None:
        self.spec = spec
        self.labels_N: npt.NDArray[np.int64] = arrays["labels"]
        """Class indices, -1 where a row has no label."""
        self._ids = arrays["ids"].reshape(-1) if spec.layout.variable else arrays["ids"].reshape(len(self.labels_N), -1)
        self._offsets = arrays.get("offsets")
        self._shapes = arrays.get("shapes")

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows_B: Rows) -> TokenBatch:
        """Return a copy of the given rows, in that order. Ragged rows are padded with zeros to the longest of them."""
        levels = self.spec.layout.ids_per_site
        if self._offsets is None:
            ids_BQL = np.take(self._ids, rows_B, axis=0).reshape(len(rows_B), levels, -1)
            return TokenBatch(ids_BQL.transpose(0, 2, 1))
        starts_B = self._offsets[rows_B]
        lengths_B = (self._offsets[rows_B + 1] - starts_B) // levels
        sites_L = np.arange(lengths_B.max(initial=0))
        used_B1L = (sites_L < lengths_B[:, None])[:, None]
        level_starts_BQ = starts_B[:, None] + np.arange(levels) * lengths_B[:, None]
        places_BQL = np.where(used_B1L, level_starts_BQ[:, :, None] + sites_L, 0)
        ids_BQL = np.where(used_B1L, self._ids[places_BQL], self._ids.dtype.type(0))
        shapes_BD = None if self._shapes is None else self._shapes[rows_B]
        return TokenBatch(ids_BQL.transpose(0, 2, 1), lengths_B.astype(np.int32) if shapes_BD is None else None, shapes_BD)


class DecodedSet(DecodedRows):
    """A whole dataset, decoded once per node into files that every process maps read-only."""

    @classmethod
    def open(cls, dataset: TokenDataset, *, cache_dir: str | None, cache_gb: float, threads: int | None = None) -> DecodedSet:
        """Map the decoded copy of a dataset. The first process makes the copy while other processes wait for its lock.

        The seal is written once all bytes are on the disk, and only a sealed copy counts. The process that makes the copy does not wait for
        the seal. A damaged copy is made again. Raises ConfigError where `cache_gb` or the disk is too small, CorruptObjectError naming
        shard and rows where ids cannot be decoded.
        """
        needed = decoded_bytes(dataset, len(dataset))
        if needed > cache_gb * GIGABYTE:
            raise ConfigError(
                f"cache_gb is {cache_gb:g}; the order `global` needs {needed / GIGABYTE:.3g} GB for {len(dataset)} decoded rows. "
                "Raise --cache-gb, or use --order windowed, which holds two windows of shards at a time"
            )
        folder = copies_folder(dataset, cache_dir)
        arrays = _map_sealed(folder)
        if arrays is None:
            lock = FileLock(folder / "decoded.lock", thread_local=False, poll_interval=0.02)
            # A finite timeout: filelock takes a thread that waits twice for a deadlock. Here another thread, `_seal`, releases the lock.
            lock.acquire(timeout=threading.TIMEOUT_MAX)
            try:
                arrays = _map_sealed(folder)
                if arrays is None:
                    arrays = _build(dataset, folder, needed, threads or decoding_threads(), lock)
                else:
                    lock.release()
            except BaseException:
                lock.release()
                raise
        return cls(dataset.spec, arrays)


def decoding_threads() -> int:
    """Return how many threads decode: the cores of this process, at most 16."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def decode_shards(copies: ShardCopies, shards: Sequence[int], threads: int) -> Iterator[Arrays]:
    """Yield the arrays of every row group of the shards at these places of `dataset.shards`, in order; `threads` groups decode at once.

    Keys: `ids` [n, Q, L] or flat, `labels` [n], and for ragged layouts `sizes` [n], the ids of each row, and `shapes` [n, D]. At most
    3 `threads` row groups and 4 encoded shards are in memory. Raises CorruptObjectError naming shard and rows.
    """
    starts = np.cumsum([0, *(entry.rows for entry in copies.dataset.shards)])
    # Two pools, so that a slow download does not delay row groups that are ready to decode.
    opening, decoding = ThreadPoolExecutor(4, "tokenshards-open"), ThreadPoolExecutor(threads, "tokenshards-decode")
    try:
        opened = _in_order(opening, (partial(_OpenShard, copies, shard, int(starts[shard])) for shard in shards), 3)
        groups = (partial(shard.decode, group) for shard in opened for group in range(shard.groups))
        yield from _in_order(decoding, groups, 2 * threads)
    finally:
        for pool in (opening, decoding):
            pool.shutdown(wait=False, cancel_futures=True)


def write_rows(groups: Iterable[Arrays], spec: TokenizerSpec, sinks: Mapping[str, BinaryIO]) -> dict[str, tuple[np.dtype[Any], list[int]]]:
    """Append row groups to one binary sink per array of `array_names`; return dtype and shape of each array."""
    layout = spec.layout
    rows = ids = 0
    if layout.variable:
        sinks["offsets"].write(np.zeros(1, np.int64).data)
    for arrays in groups:
        if layout.variable:
            sinks["offsets"].write((ids + np.cumsum(arrays["sizes"], dtype=np.int64)).data)
        for name in sinks.keys() - {"offsets"}:
            sinks[name].write(np.ascontiguousarray(arrays[name]).reshape(-1).data)
        rows += len(arrays["labels"])
        ids += arrays["ids"].size
    fixed = [rows, layout.ids_per_site, layout.sites]
    every = {
        "ids": (spec.id_dtype, [ids] if layout.variable else fixed),
        "labels": (np.dtype(np.int64), [rows]),
        "offsets": (np.dtype(np.int64), [rows + 1]),
        "shapes": (np.dtype(np.int32), [rows, layout.shape_dims]),
    }
    return {name: every[name] for name in sinks}


def array_names(spec: TokenizerSpec) -> tuple[str, ...]:
    """Return the names of the arrays that hold rows of this layout."""
    ragged = ("offsets", "shapes") if spec.layout.shape_dims else ("offsets",)
    return ("ids", "labels", *ragged) if spec.layout.variable else ("ids", "labels")


class _OpenShard:
    """One shard whose row groups several threads decode, each with a reader of its own."""

    def __init__(self, copies: ShardCopies, shard: int, first_row: int) -> None:
        self._dataset, self._first_row = copies.dataset, first_row
        self._entry = entry = copies.dataset.shards[shard]
        with _naming_rows(first_row, entry.rows):
            self._open = copies.open(entry)
            reader = self._open()
            counts = [reader.row_group_rows(group) for group in range(reader.num_row_groups)]
            if sum(counts) != entry.rows:
                raise CorruptObjectError(str(entry.path), f"its row groups hold {sum(counts)} rows; the manifest says {entry.rows}")
            # At once, because a column of a few bytes a row costs a fifth as much by the shard as by the row group.
            self._labels_N = self._dataset._class_indices(reader.read_columns(("label",)).column("label"))
        self.groups = len(counts)
        self._ends = np.cumsum(counts)
        self._idle: SimpleQueue[ShardReader] = SimpleQueue()
        self._idle.put(reader)

    def decode(self, group: int) -> Arrays:
        """Return the arrays of one row group."""
        try:
            reader = self._idle.get_nowait()
        except Empty:
            reader = self._open()
        rows = reader.row_group_rows(group)
        end = int(self._ends[group])
        with _naming_rows(self._first_row + end - rows, rows):
            tokens = reader.read_tokens(group)
        self._idle.put(reader)
        labels_N = self._labels_N[end - rows : end]
        ids_NQL = tokens.ids_BLQ.transpose(0, 2, 1)
        if not reader.spec.layout.variable:
            return {"ids": ids_NQL, "labels": labels_N}
        shapes_ND = tokens.shapes_BD
        lengths_N = tokens.lengths_B if shapes_ND is None else shapes_ND.prod(axis=1)
        used_NQL = np.broadcast_to((np.arange(ids_NQL.shape[2]) < np.asarray(lengths_N)[:, None])[:, None], ids_NQL.shape)
        arrays = {"ids": ids_NQL[used_NQL], "labels": labels_N, "sizes": np.asarray(lengths_N, np.int64) * ids_NQL.shape[1]}
        return arrays if shapes_ND is None else {**arrays, "shapes": shapes_ND}


def _in_order(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """Run tasks in the pool and yield their results in order. `ahead` tasks are submitted beyond the one that is awaited."""
    pending: deque[Future[T]] = deque()
    for task in tasks:
        pending.append(pool.submit(task))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextmanager
def _naming_rows(first_row: int, rows: int) -> Iterator[None]:
    try:
        yield
    except CorruptObjectError as error:
        where = f"dataset rows {first_row} to {first_row + rows - 1} are in it"
        raise CorruptObjectError(error.object_path, f"{error.detail}; {where}") from None


def _build(dataset: TokenDataset, folder: Path, needed: int, threads: int, lock: FileLock) -> Arrays:
    """Decode everything into a new folder and map it. A thread then seals the copy and releases the lock once it is on the disk."""
    for stale in folder.glob(f"{FOLDER_PREFIX}*"):  # left by dead builders, or damaged: a sealed copy would have been mapped
        if stale.is_dir():
            shutil.rmtree(stale)
    require_disk(folder, needed)
    place = folder / f"{FOLDER_PREFIX}{uuid.uuid4().hex}"
    place.mkdir()
    try:
        with ExitStack() as stack:
            sinks = {name: stack.enter_context(open(place / name, "wb")) for name in array_names(dataset.spec)}
            groups = decode_shards(ShardCopies(dataset), range(len(dataset.shards)), threads)
            found = write_rows(groups, dataset.spec, sinks)
        pa.default_memory_pool().release_unused()  # otherwise the pool keeps the memory of the decoding for the whole training
        arrays = {name: map_array(place / name, dtype, shape) for name, (dtype, shape) in found.items()}
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            require_disk(folder, needed)
        raise
    contents = {name: {"dtype": dtype.str, "shape": shape} for name, (dtype, shape) in found.items()}
    value = {"format": FORMAT, "manifest": dataset.manifest.name, "folder": place.name, "arrays": contents}
    threading.Thread(target=_seal, args=(folder, value, lock), name="tokenshards-seal").start()
    return arrays


def _seal(folder: Path, value: dict[str, Any], lock: FileLock) -> None:
    place = folder / value["folder"]
    try:
        for file in (*place.iterdir(), place, folder):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        Store(str(folder)).write(SEAL_NAME, seal(value))
    except (OSError, TokenshardsError) as error:
        # This process has its maps and goes on; the next process finds no seal and builds again.
        warnings.warn(f"{folder}: the decoded copy could not be kept ({error})", RuntimeWarning, stacklevel=1)
    finally:
        lock.release()


def _map_sealed(folder: Path) -> Arrays | None:
    """Map the sealed copy in a folder; None where there is none, or where the files differ from the seal."""
    try:
        value = unseal((folder / SEAL_NAME).read_bytes(), SEAL_NAME)
        if value["format"] != FORMAT:
            return None
        place = folder / value["folder"]
        return {name: map_array(place / name, np.dtype(item["dtype"]), item["shape"]) for name, item in value["arrays"].items()}
    except (OSError, CorruptObjectError, KeyError, TypeError, ValueError):
        return None


def map_array(file: Path, dtype: np.dtype[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Map a file of an array read-only; raises CorruptObjectError if its size is another."""
    expected = math.prod(shape) * dtype.itemsize
    found = file.stat().st_size
    if found != expected:
        raise CorruptObjectError(file.name, f"{found} bytes; expected {expected}")
    if not expected:
        return np.zeros(shape, dtype)  # an empty file cannot be mapped
    return np.memmap(file, dtype, "r", shape=tuple(shape)).view(np.ndarray)
