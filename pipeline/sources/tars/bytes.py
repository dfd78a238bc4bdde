"""The bytes of an archive by position: a stored object read in blocks, or its unpacked content, which can only be read forward."""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from typing import Any, Protocol

from tokenshards.pipeline.errors import BadInput, ConfigError, Reason, Stage
from tokenshards.pipeline.storage.store import Store

__all__ = ["MAX_RATIO", "MAX_UNPACKED", "ArchiveBytes", "StoredBytes", "UnpackedBytes", "packing_of"]

KIB, MIB = 1 << 10, 1 << 20
MAX_UNPACKED = 1 << 40
"""Most bytes that one compressed archive may hold."""
MAX_RATIO = 200
"""Most unpacked bytes for each stored byte, once FREE_BYTES are unpacked."""
FREE_BYTES = 256 * MIB
PIECE_BYTES = MIB
_MAGIC = (
    (b"\x1f\x8b\x08", "gz"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"PK\3\4", "zip"),
    (b"PK\5\6", "zip"),
)


class ArchiveBytes(Protocol):
    """Bytes of one archive by position."""

    forward_only: bool
    """Whether a read may not begin before the end of the last one."""
    end: int
    """Number of bytes, -1 if it is known only at the end."""

    def read(self, position: int, size: int) -> bytes:
        """Return `size` bytes from `position`, fewer at the end. Damage of a compressed stream raises its decompressor's own error."""

    @property
    def taken(self) -> float:
        """Share of the stored bytes that were needed so far."""


def packing_of(head: bytes) -> str:
    """Return `gz`, `bz2`, `xz`, `zst` or `zip` by the first bytes of an archive; empty for a plain tar."""
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "")


class StoredBytes:
    """A stored object. Neighbouring reads share blocks that grow to `most` bytes; after a jump the blocks are smaller, down to `least`."""

    forward_only = False

    def __init__(self, store: Store, path: str, size: int, *, least: int, most: int) -> None:
        self._store, self._path, self.end = store, path, max(0, size)
        self._least, self._most, self._length = least, most, least
        self._start, self._block, self._furthest = 0, b"", 0
        self._handle = -1
        if store.is_local:
            try:
                self._handle = os.open(store.join(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except (OSError, ValueError):
                pass  # the store reads it, and finds the words for what is wrong

    def __enter__(self) -> StoredBytes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @property
    def taken(self) -> float:
        """Share of the bytes up to the furthest read."""
        return self._furthest / max(1, self.end)

    def read(self, position: int, size: int) -> bytes:
        """Return `size` bytes from `position`, fewer at the end; raises BadInput if the object became shorter."""
        stop = min(position + size, self.end)
        if stop <= position:
            return b""
        offset, have = position - self._start, len(self._block)
        if not (offset >= 0 and stop - self._start <= have):
            kept = self._block[offset:] if 0 <= offset <= have else b""
            self._length = min(2 * self._length, self._most) if 0 <= offset <= have else max(self._length // 2, self._least)
            begin = position + len(kept)
            self._block = kept + self._fetch(begin, min(max(stop, begin + self._length), self.end))
            self._start, offset = position, 0
        self._furthest = max(self._furthest, stop)
        return self._block[offset : offset + stop - position]

    def _fetch(self, start: int, stop: int) -> bytes:
        data = b""
        if self._handle >= 0:
            try:
                data = os.pread(self._handle, stop - start, start)
            except OSError:
                data = b""
        if len(data) != stop - start:
            data = self._store.read(self._path, start, stop)
        if len(data) != stop - start:
            detail = f"{len(data)} bytes at {start}, expected {stop - start}: the object became shorter during the read"
            raise BadInput(Reason.CHANGED_SINCE_PLAN, f"{self._store.place(self._path)}: {detail}", Stage.FETCH)
        return data


class UnpackedBytes:
    """The unpacked content of the bytes [start, stop) of an archive; it holds only what the last read needed.

    Raises BadInput DECOMPRESSION_BOMB when it unpacks to more than MAX_UNPACKED bytes or MAX_RATIO times its size, EOFError if the
    stream ends too early, and what the decompressor raises.
    """

    forward_only = True

    def __init__(self, raw: ArchiveBytes, start: int, stop: int, packing: str) -> None:
        self._raw, self._packing = raw, packing
        self._begin, self._at, self._stop = start, start, stop
        self._decoder: Any = None
        self._input = b""
        self._start, self._buffer = 0, bytearray()
        self.end = -1

    @property
    def taken(self) -> float:
        """Share of the stored bytes that are unpacked."""
        return (self._at - self._begin) / max(1, self._stop - self._begin)

    def read(self, position: int, size: int) -> bytes:
        """Return `size` bytes from `position`, fewer at the end; `position` may not lie before what earlier reads have passed."""
        if position < self._start:
            raise ValueError(f"a compressed archive is read forward only: {position} lies before {self._start}")
        while self._start + len(self._buffer) < position + size:
            passed = min(position - self._start, len(self._buffer))
            del self._buffer[:passed]
            self._start += passed
            piece = self._unpack()
            if not piece:
                self.end = self._start + len(self._buffer)
                break
            self._buffer += piece
            unpacked, packed = self._start + len(self._buffer), self._at - self._begin
            if unpacked > MAX_UNPACKED or unpacked > max(FREE_BYTES, MAX_RATIO * packed):
                detail = f"{packed} bytes unpack to more than {unpacked}; expected at most {MAX_RATIO} times as many, and {MAX_UNPACKED}"
                raise BadInput(Reason.DECOMPRESSION_BOMB, detail, Stage.FETCH)
        offset = position - self._start
        return bytes(memoryview(self._buffer)[offset : offset + size])

    def _unpack(self) -> bytes:
        """Return the next piece, empty at the end of the last stream."""
        while True:
            if self._decoder is None or self._decoder.eof:
                self._input = (self._decoder.unused_data if self._decoder is not None else b"") or self._next_input()
                if not self._input or not self._input.strip(b"\0"):  # some tapes are filled up with zeros
                    return b""
                self._decoder = _decoder(self._packing)
            if not self._input and self._decoder.needs_input:
                self._input = self._next_input()
                if not self._input:
                    raise EOFError(f"the {self._packing} stream ends too early")
            data, self._input = self._input, b""
            piece: bytes = self._decoder.decompress(data, PIECE_BYTES)
            if piece:
                return piece

    def _next_input(self) -> bytes:
        step = KIB if self._packing == "zst" else 64 * KIB  # the output of zstandard has no limit of its own
        data = self._raw.read(self._at, min(step, self._stop - self._at))
        self._at += len(data)
        return data


class _Gzip:
    """zlib with the interface of bz2 and lzma."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, most: int) -> bytes:
        piece = self._inflate.decompress(self._inflate.unconsumed_tail + data, most)
        self.needs_input = len(piece) < most and not self._inflate.unconsumed_tail
        return piece


class _Zstandard:
    """zstandard with the interface of bz2 and lzma."""

    needs_input = True

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise ConfigError("a tar compressed by zstandard needs that package: pip install zstandard") from None
        self._object = zstandard.ZstdDecompressor(max_window_size=256 * MIB).decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._object.eof)

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._object.decompress(data)


def _decoder(packing: str) -> Any:
    kinds: dict[str, Any] = {"gz": _Gzip, "bz2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor, "zst": _Zstandard}
    return kinds[packing]()
