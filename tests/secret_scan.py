"""Looks for a secret in everything that a run leaves behind or shows: files, compressed or not, and the command lines of processes."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import zstandard

_LARGEST = 64 << 20


class SecretScan:
    """Knows the secrets, and how they may be written: plain, in base64, in base16."""

    def __init__(self, *secrets: str) -> None:
        self._needles: set[bytes] = set()
        for secret in secrets:
            raw = secret.encode()
            self._needles |= {raw, raw.hex().encode()}
            for shift in range(3):  # base64 of a text that holds it, at each alignment; the ends depend on the neighbours
                coded = base64.b64encode(b"\0" * shift + raw)
                self._needles.add(coded[4 if shift else 0 : -4])

    def has(self, data: bytes) -> bool:
        """True where `data`, or what it unpacks to, holds a secret."""
        return any(needle in part for part in _layers(data) for needle in self._needles)

    def files(self, folder: Path) -> tuple[list[str], int]:
        """Return the files below a folder that hold a secret, and how many were read. Sockets and files that vanish are left out."""
        found, read = [], 0
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    data = path.read_bytes()
                    read += 1
                    if self.has(data) or self.has(path.name.encode()):
                        found.append(str(path))
        return found, read

    @contextlib.contextmanager
    def watch_command_lines(self) -> Iterator[list[str]]:
        """Look at /proc/*/cmdline all the time; the list fills with the command lines that hold a secret."""
        found: list[str] = []
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.02):
                for name in os.listdir("/proc"):
                    if name.isdigit():
                        with contextlib.suppress(OSError):
                            line = Path(f"/proc/{name}/cmdline").read_bytes()
                            if self.has(line):
                                found.append(line.replace(b"\0", b" ").decode(errors="replace"))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            thread.join()


def _layers(data: bytes) -> Iterator[bytes]:
    """Yield the bytes, and what they unpack to: Parquet cells, members of a zip file, zstd and gzip."""
    yield data
    if data[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        yield repr(table.schema.metadata).encode()
        for column in table.column_names:
            if "list" not in str(table.schema.field(column).type):
                yield repr(table.column(column).to_pylist()).encode()
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield archive.read(name)
    elif data[:4] == b"\x28\xb5\x2f\xfd":
        yield zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read(_LARGEST)
    elif data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
