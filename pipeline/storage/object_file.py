"""A stored object as a file: seekable by ranged reads, or a stream that is decompressed by its name."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import fsspec.compression

from tokenshards.pipeline.errors import BadInput, ConfigError, Reason, Stage
from tokenshards.pipeline.optional_packages import install_hint
from tokenshards.pipeline.storage.store import Store

__all__ = ["RangeReader", "open_stream"]

STREAM_BLOCK_BYTES = 8 << 20


class RangeReader(io.RawIOBase):
    """A stored object as a seekable file; each read is one range request, checked and retried.

    A failing store raises TransientStorageError or MissingObjectError. It never causes the OSError or the short read of a damaged
    container, so the content is the cause of every other error of a parser.
    """

    def __init__(self, store: Store, path: str, size: int) -> None:
        super().__init__()
        self._store, self._path, self._size, self._position = store, path, size, 0

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._store.read(self._path, self._position, stop)
        if len(data) != stop - self._position:
            detail = f"{len(data)} bytes at {self._position}, expected {stop - self._position}: the object became shorter during the read"
            raise BadInput(Reason.CHANGED_SINCE_PLAN, f"{self._store.place(self._path)}: {detail}", Stage.FETCH)
        buffer[: len(data)] = data
        self._position = stop
        return len(data)


def open_stream(store: Store, path: str, size: int) -> BinaryIO:
    """Return an object as a buffered byte stream, decompressed if its name ends in .gz, .tgz or .zst."""
    raw: Any = io.BufferedReader(RangeReader(store, path, size), STREAM_BLOCK_BYTES)
    for ending, codec in ((".gz", "gzip"), (".tgz", "gzip"), (".zst", "zstd")):
        if path.lower().endswith(ending):
            if codec not in fsspec.compression.compr:
                raise ConfigError(f"{store.place(path)}: {ending} needs zstandard, which cannot be imported; run: {install_hint()}")
            raw = fsspec.compression.compr[codec](raw, mode="rb")
    stream: BinaryIO = raw
    return stream
