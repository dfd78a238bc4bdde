"""Where copies of a dataset live on this machine, how large they may grow, and the shards themselves as checked bytes.

    CACHE/<digest of the manifest>/decoded.json, decoded-*/    the decoded set of the order `global`   (decoded.py)
    CACHE/<digest of the manifest>/with_maps.json, with_maps-*/    the same with label maps            (decoded.py)
    CACHE/<digest of the manifest>/shards/                     downloaded shards of the window orders  (windows.py)

Everything here may be deleted at any time; a later run makes what it needs again.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, FingerprintMismatchError
from tokenshards.pipeline.shards.compact.model_file import models_of
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.manifest import ShardEntry
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.pipeline.shards.reader import ShardReader

__all__ = ["GIGABYTE", "ShardCopies", "cache_root", "copies_folder", "decoded_bytes", "require_disk"]

GIGABYTE = 1e9
DOWNLOAD_ATTEMPTS = 3
LOCK_FILES = 16


def cache_root(cache_dir: str | None) -> Path:
    """Return the folder of all copies: `cache_dir`, or $TOKENSHARDS_CACHE, or `tokenshards` in the user's cache folder."""
    if cache_dir is not None and "://" in cache_dir:
        raise ConfigError(f"cache_dir is {cache_dir!r}; expected a folder on this machine, because copies are memory-mapped")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenshards"
    return Path(cache_dir or os.environ.get("TOKENSHARDS_CACHE") or user).expanduser()


def copies_folder(dataset: TokenDataset, cache_dir: str | None) -> Path:
    """Return the folder of this dataset's copies, after making it. Its name is the digest in the manifest's name."""
    folder = cache_root(cache_dir) / dataset.manifest.name.removeprefix("manifest-").removesuffix(".json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache folder {folder} cannot be made ({error}); choose another with cache_dir or $TOKENSHARDS_CACHE"
        ) from None
    return folder


def decoded_bytes(dataset: TokenDataset, rows: int, maps: MaskFormat | None = None) -> int:
    """Return the bytes of `rows` decoded rows, with label maps of the format `maps`.

    Ragged layouts count by their mean length, or by the largest where the mean is unknown.
    """
    spec, layout = dataset.spec, dataset.spec.layout
    ids_per_row = float(layout.sites * layout.ids_per_site)
    label_bytes = 8
    if layout.variable:
        ids_per_row = dataset.manifest.totals.get("id_count", ids_per_row * len(dataset)) / max(1, len(dataset))
        label_bytes += 8 + 4 * layout.shape_dims
    map_bytes = 0 if maps is None else maps.pixels * np.dtype(maps.dtype).itemsize
    return int(rows * (ids_per_row * spec.id_dtype.itemsize + label_bytes + map_bytes)) + 8


def require_disk(folder: Path, needed: int) -> None:
    """Raise ConfigError unless `needed` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder}: {free / GIGABYTE:.3g} GB are free; this copy of the dataset needs {needed / GIGABYTE:.3g} GB. "
            f"Delete copies of other datasets in {folder.parent}, choose another folder with --cache-dir, or use --order windowed"
        )


class ShardCopies:
    """The shards of a dataset, ready to decode; safe for threads, and for processes that share `folder`.

    Local shards are read in place. Remote shards are read whole and compared with their sha256. With a `folder`, remote shards stay there
    as files, up to `limit_bytes`, until evicted. A file that is gone is downloaded again. Nobody reads a file again after its check.
    """

    def __init__(self, dataset: TokenDataset, folder: Path | None = None, limit_bytes: int = 0) -> None:
        self.dataset = dataset
        self.remote = not dataset.is_local
        self._folder = folder if self.remote else None
        self._limit_bytes = limit_bytes
        self._used: set[Path] = set()
        self._guard = threading.Lock()
        if self._folder is not None:
            (self._folder / "locks").mkdir(parents=True, exist_ok=True)

    def open(self, entry: ShardEntry) -> Callable[[], ShardReader]:
        """Return a function that opens readers of one shard, one for each thread that decodes it.

        Raises CorruptObjectError where the bytes differ from those that the manifest names, MissingObjectError where there are none,
        TransientStorageError where the store does not answer.
        """
        if not self.remote and not self.dataset.verify:
            return lambda: self.dataset.open_shard(entry)
        data = self._download(entry) if self._folder is None else self._kept(entry, self._folder)
        return lambda: self._reader(data, entry)

    def evict(self, entries: Iterable[ShardEntry]) -> None:
        """Remove the files of these shards."""
        if self._folder is not None:
            files = {self._folder / _file_name(entry) for entry in entries}
            with self._guard:
                self._used -= files
            for file in files:
                file.unlink(missing_ok=True)

    def _download(self, entry: ShardEntry) -> bytes:
        path, expected = str(entry.path), str(entry.sha256)
        for _ in range(DOWNLOAD_ATTEMPTS):
            data = self.dataset.store_of(entry).read(path)
            found = sha256_hex(data)
            if found == expected:
                return data
        raise CorruptObjectError(
            path,
            f"the sha256 of its {len(data)} bytes is {found[:12]}…, read {DOWNLOAD_ATTEMPTS} times; the manifest says {entry.size} bytes "
            f"with {expected[:12]}…. Run `tokenshards repair`",
        )

    def _kept(self, entry: ShardEntry, folder: Path) -> bytes:
        file = folder / _file_name(entry)
        with self._guard:
            self._used.add(file)
        with FileLock(folder / "locks" / f"{int(str(entry.sha256)[:8], 16) % LOCK_FILES}.lock", poll_interval=0.01):
            try:
                data = file.read_bytes()
            except FileNotFoundError:
                data = b""
            if sha256_hex(data) == entry.sha256:
                return data
            data = self._download(entry)
            # A kept file only saves a later download: a full disk must not end the run.
            with suppress(OSError), FileLock(folder / "locks" / "room.lock", poll_interval=0.01):
                self._make_room(folder, len(data))
                temporary = file.with_suffix(".part")  # the lock makes this name ours; leftovers of a killed process are overwritten
                temporary.write_bytes(data)
                os.replace(temporary, file)
            return data

    def _make_room(self, folder: Path, needed: int) -> None:
        with self._guard:
            used = set(self._used)
        files = {file: file.stat() for file in folder.iterdir() if file.is_file()}
        excess = sum(status.st_size for status in files.values()) + needed - self._limit_bytes
        for file in sorted(files.keys() - used, key=lambda file: files[file].st_mtime):
            if excess <= 0:
                break
            file.unlink(missing_ok=True)
            excess -= files[file].st_size

    def _reader(self, data: bytes, entry: ShardEntry) -> ShardReader:
        reader = ShardReader.open(data, str(entry.path), models=models_of(self.dataset.store_of(entry)))
        if reader.fingerprint != self.dataset.spec.fingerprint:
            raise FingerprintMismatchError(
                f"{entry.path}: made by the tokenizer {reader.fingerprint[:12]}…; this dataset has {self.dataset.spec.fingerprint[:12]}…. "
                "Ids of two tokenizers cannot be mixed; tokenize the source of that shard again"
            )
        return reader


def _file_name(entry: ShardEntry) -> str:
    return f"{entry.sha256}.parquet"
