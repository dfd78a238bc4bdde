"""The decoded set of the order `global`: a whole dataset as flat arrays in files, made once per node and mapped by every process."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import uuid
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from tokenshards.pipeline.canonical import seal, unseal
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, TokenshardsError
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.data.cache import GIGABYTE, ShardCopies, copies_folder, decoded_bytes, require_disk
from tokenshards.stem_adaptors.data.decoded_rows import Arrays, DecodedRows, array_names, map_array, write_rows
from tokenshards.stem_adaptors.data.decoding import decode_shards, decoding_threads

__all__ = ["DecodedSet"]

FORMAT = 1
PLAIN, WITH_MAPS = "decoded", "with_maps"
"""Names of the two kinds of decoded sets: NAME.json seals NAME-*."""


class DecodedSet(DecodedRows):
    """A whole dataset, decoded once per node into files that every process maps read-only."""

    @classmethod
    def open(
        cls,
        dataset: TokenDataset,
        *,
        cache_dir: str | None,
        cache_gb: float,
        maps: MaskFormat | None = None,
        threads: int | None = None,
    ) -> DecodedSet:
        """Map the decoded copy of a dataset. The first process makes the copy while other processes wait for its lock.

        The seal is written once all bytes are on the disk, and only a sealed copy counts. The process that makes the copy does not wait for
        the seal. A damaged copy is made again. Raises ConfigError where `cache_gb` or the disk is too small, CorruptObjectError naming
        shard and rows where ids cannot be decoded.
        """
        needed = decoded_bytes(dataset, len(dataset), maps)
        if needed > cache_gb * GIGABYTE:
            raise ConfigError(
                f"cache_gb is {cache_gb:g}; the order `global` needs {needed / GIGABYTE:.3g} GB for {len(dataset)} decoded rows. "
                "Raise --cache-gb, or use --order windowed, which holds two windows of shards at a time"
            )
        folder, name = copies_folder(dataset, cache_dir), PLAIN if maps is None else WITH_MAPS
        arrays = _map_sealed(folder, name)
        if arrays is None:
            lock = FileLock(folder / f"{name}.lock", thread_local=False, poll_interval=0.02)
            # A finite timeout: filelock takes a thread that waits twice for a deadlock. Here another thread, `_seal`, releases the lock.
            lock.acquire(timeout=threading.TIMEOUT_MAX)
            try:
                arrays = _map_sealed(folder, name)
                if arrays is None:
                    arrays = _build(dataset, folder, name, maps, needed, threads or decoding_threads(), lock)
                else:
                    lock.release()
            except BaseException:
                lock.release()
                raise
        return cls(dataset.spec, arrays)


def _build(dataset: TokenDataset, folder: Path, name: str, maps: MaskFormat | None, needed: int, threads: int, lock: FileLock) -> Arrays:
    """Decode everything into a new folder and map it. A thread then seals the copy and releases the lock once it is on the disk."""
    for stale in folder.glob(f"{name}-*"):  # left by dead builders, or damaged: a sealed copy would have been mapped
        if stale.is_dir():
            shutil.rmtree(stale)
    require_disk(folder, needed)
    place = folder / f"{name}-{uuid.uuid4().hex}"
    place.mkdir()
    try:
        with ExitStack() as stack:
            sinks = {array: stack.enter_context(open(place / array, "wb")) for array in array_names(dataset.spec, maps)}
            groups = decode_shards(ShardCopies(dataset), range(len(dataset.shards)), threads, maps)
            found = write_rows(groups, dataset.spec, sinks, maps)
        pa.default_memory_pool().release_unused()  # otherwise the pool keeps the memory of the decoding for the whole training
        arrays = {array: map_array(place / array, dtype, shape) for array, (dtype, shape) in found.items()}
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            require_disk(folder, needed)
        raise
    contents = {array: {"dtype": dtype.str, "shape": shape} for array, (dtype, shape) in found.items()}
    value = {"format": FORMAT, "manifest": dataset.manifest.name, "folder": place.name, "arrays": contents}
    threading.Thread(target=_seal, args=(folder, name, value, lock), name="tokenshards-seal").start()
    return arrays


def _seal(folder: Path, name: str, value: dict[str, Any], lock: FileLock) -> None:
    place = folder / value["folder"]
    try:
        for file in (*place.iterdir(), place, folder):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        Store(str(folder)).write(_seal_name(name), seal(value))
    except (OSError, TokenshardsError) as error:
        # This process has its maps and goes on; the next process finds no seal and builds again.
        warnings.warn(f"{folder}: the decoded copy could not be kept ({error})", RuntimeWarning, stacklevel=1)
    finally:
        lock.release()


def _seal_name(name: str) -> str:
    return f"{name}.json"


def _map_sealed(folder: Path, name: str) -> Arrays | None:
    """Map the sealed copy in a folder; None where there is none, or where the files differ from the seal."""
    try:
        value = unseal((folder / _seal_name(name)).read_bytes(), _seal_name(name))
        if value["format"] != FORMAT:
            return None
        place = folder / value["folder"]
        return {array: map_array(place / array, np.dtype(item["dtype"]), item["shape"]) for array, item in value["arrays"].items()}
    except (OSError, CorruptObjectError, KeyError, TypeError, ValueError):
        return None
