"""The streams of `streams` in machine code: sixteen rows side by side, where numba is installed. The bytes and the ids are the same.

Shapes: B rows, T ids of a row, N slots, S bytes.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.shards.compact.contexts import Contexts
from tokenshards.pipeline.shards.compact.kernel_model import kernel_model
from tokenshards.pipeline.shards.compact.model import CompactModel
from tokenshards.pipeline.shards.compact.processor import PLAIN_KERNELS
from tokenshards.pipeline.shards.compact.streams import damaged, require_beginnings

__all__ = ["Kernels", "kernels"]

COMPILED = ("lockstep_kernels", "edges_avx2", "edges_plain", "processor")
"""The modules that are compiled."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled functions."""

    decode: Callable[..., int]
    encode: Callable[..., None]
    weight_order: tuple[int, ...]

    def decode_rows(
        self, model: CompactModel, contexts: Contexts, streams: Sequence[bytes], numbers: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.int64]:
        """Do what `streams.decode_rows` does."""
        require_beginnings(streams, numbers)
        own = kernel_model(model, self.weight_order)
        rows, lengths_B = len(streams), np.array([len(stream) for stream in streams], np.int64)
        data = np.frombuffer(b"".join(streams), np.uint8)
        ids_BT = np.zeros((rows, len(contexts.levels_T)), np.int64)
        wrong = self.decode(data.copy(), lengths_B, _order(contexts, own.slots), *own.arrays, ids_BT)
        if wrong >= 0:
            raise damaged(wrong, ids_BT.shape[1], numbers)
        return ids_BT

    def encode_rows(self, model: CompactModel, contexts: Contexts, ids_BT: npt.NDArray[np.int64]) -> list[bytes]:
        """Do what `streams.encode_rows` does."""
        own, rows = kernel_model(model, self.weight_order), len(ids_BT)
        digits = sum(int((contexts.levels_T == number).sum()) * level.digits for number, level in enumerate(model.levels))
        bytes_BS, used_B = np.zeros((rows, 2 * digits + 4), np.uint8), np.zeros(rows, np.int64)
        self.encode(np.ascontiguousarray(ids_BT), digits, _order(contexts, own.slots), *own.arrays, bytes_BS, used_B)
        return [bytes_BS[row, used_B[row] :].tobytes() for row in range(rows)]


def _order(contexts: Contexts, slots: int) -> npt.NDArray[np.int64]:
    """Return int64 [T, N + 2]: level, base, and the places of the slots."""
    count = len(contexts.levels_T)
    found = np.full((count, slots + 2), -1, np.int64)
    found[:, 0], found[:, 1] = contexts.levels_T, contexts.bases_T
    found[:, 2 : 2 + contexts.earlier_TN.shape[1]] = contexts.earlier_TN[:, :slots]
    return found


@functools.cache
def kernels() -> Kernels | None:
    """Return the compiled functions, or None where numba is not installed. The first process of a machine compiles for some seconds."""
    try:
        import numba
    except ImportError:
        return None
    before = numba.config.CACHE_DIR, numba.config.SLP_VECTORIZE
    numba.config.CACHE_DIR, numba.config.SLP_VECTORIZE = str(_cache_folder()), 1
    try:
        from tokenshards.pipeline.shards.compact import lockstep_kernels
    finally:
        numba.config.CACHE_DIR, numba.config.SLP_VECTORIZE = before
    return Kernels(lockstep_kernels.decode, lockstep_kernels.encode, lockstep_kernels.WEIGHT_ORDER)


def _cache_folder() -> Path:
    """Return a folder of this user alone on this machine: what lies there is run."""
    folder = Path(tempfile.gettempdir()) / f"tokenshards-numba-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.stat()
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o077):
        folder = Path(tempfile.mkdtemp(prefix="tokenshards-numba-"))  # another user's: nothing is kept then
    # numba looks at the file of a compiled function, and not at those of the functions that are called.
    sources = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in COMPILED)
    return folder / f"{sha256_hex(sources)[:12]}{'-plain' if os.environ.get(PLAIN_KERNELS) else ''}"
