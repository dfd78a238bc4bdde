"""Decoded windows as files that all processes of a machine map: the first process decodes a window, the others wait for it.

CACHE/<digest of the manifest>/windows/<digest of the shards>/     one window: its arrays, and window.json, which seals them
CACHE/<digest of the manifest>/windows/part-N, N.lock              a window that the holder of lock N is writing
"""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from filelock import FileLock, Timeout

from tokenshards.pipeline.canonical import canonical_json, seal, sha256_hex, unseal
from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.stem_adaptors.data.decoded_rows import Arrays, map_array

__all__ = ["SharedWindows"]

Written: TypeAlias = dict[str, tuple[np.dtype[Any], list[int]]]
"""Dtype and shape of each array."""

FORMAT = 1
SEAL_NAME = "window.json"
SLOTS = 8


class SharedWindows:
    """At most `keep` windows in a folder. Removing one is always safe: who has mapped it keeps it, and who comes later decodes it again."""

    def __init__(self, folder: Path, names: Sequence[str], keep: int) -> None:
        """`names`: names of the arrays of a window."""
        self._folder, self._names, self._keep = folder, names, keep
        folder.mkdir(parents=True, exist_ok=True)
        # What killed processes were writing or removing.
        for slot in range(SLOTS):
            with suppress(Timeout), self._lock(slot, timeout=0):
                shutil.rmtree(folder / f"part-{slot}", ignore_errors=True)
        for gone in folder.glob("gone-*"):
            shutil.rmtree(gone, ignore_errors=True)

    def load(self, shards: Sequence[int], write: Callable[[Mapping[str, BinaryIO]], Written]) -> Arrays | None:
        """Return the arrays of a window, mapped read-only. Unless they are here, `write` writes them to one file each.

        A damaged window is written again. None, with a warning, where the folder takes no files.
        """
        place = self._place(shards)
        slot = int(place.name[:8], 16) % SLOTS
        with self._lock(slot):
            arrays = _mapped(place)
            if arrays is not None:
                return arrays
            part = self._folder / f"part-{slot}"
            try:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                with ExitStack() as stack:
                    found = write({name: stack.enter_context(open(part / name, "wb")) for name in self._names})
                arrays = {name: map_array(part / name, dtype, shape) for name, (dtype, shape) in found.items()}
                contents = {name: [array.dtype.str, list(array.shape), _crc(array)] for name, array in arrays.items()}
                (part / SEAL_NAME).write_bytes(seal({"format": FORMAT, "arrays": contents}))
                self._remove(place)
                os.rename(part, place)
            except OSError as error:
                warnings.warn(
                    f"{self._folder}: a decoded window could not be kept ({error}); every process of this machine decodes it for itself",
                    RuntimeWarning,
                    stacklevel=1,
                )
                shutil.rmtree(part, ignore_errors=True)
                return None
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        self._remove_oldest()
        return arrays

    def evict(self, shards: Sequence[int]) -> None:
        """Remove a window."""
        self._remove(self._place(shards))

    def _place(self, shards: Sequence[int]) -> Path:
        return self._folder / sha256_hex(canonical_json([int(shard) for shard in shards]))[:32]

    def _lock(self, slot: int, timeout: float = -1) -> FileLock:
        return FileLock(self._folder / f"{slot}.lock", timeout=timeout, poll_interval=0.01)

    def _remove_oldest(self) -> None:
        made = {}
        for place in self._folder.iterdir():
            with suppress(OSError):  # another process may have removed it
                if not place.name.startswith(("part-", "gone-")):
                    made[place] = (place / SEAL_NAME).stat().st_mtime_ns
        for place in sorted(made, key=lambda place: made[place])[: -self._keep]:
            self._remove(place)

    def _remove(self, place: Path) -> None:
        """Remove a window at once for all who look for it, and then its files."""
        gone = place.with_name(f"gone-{uuid.uuid4().hex}")
        with suppress(OSError):
            os.rename(place, gone)
            shutil.rmtree(gone)


def _crc(array: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data) if array.size else 0


def _mapped(place: Path) -> Arrays | None:
    """Map a window; None where there is none, or where its bytes are not those that were sealed, as after a power failure."""
    try:
        value = unseal((place / SEAL_NAME).read_bytes(), SEAL_NAME)
        if value["format"] != FORMAT:
            return None
        arrays = {}
        for name, (dtype, shape, crc) in value["arrays"].items():
            arrays[name] = map_array(place / name, np.dtype(dtype), shape)
            if _crc(arrays[name]) != crc:
                return None
        return arrays
    except (OSError, CorruptObjectError, KeyError, TypeError, ValueError):
        return None
