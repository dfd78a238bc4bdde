"""The streams of `streams` in machine code: sixteen rows side by side, where numba is installed. The bytes and the ids are the same.

All numbers are whole and below 2^24 in float32, or below 2^53 in float64, so that no order of adding rounds any of them.

Shapes: G = 16 rows side by side, T ids of a row, N slots, H = 32 hidden numbers, R table rows, V nodes, S digits of a row.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.shards.compact.contexts import Contexts
from tokenshards.pipeline.shards.compact.kernel_model import kernel_model
from tokenshards.pipeline.shards.compact.model import NO_CHANCE, CompactModel
from tokenshards.pipeline.shards.compact.streams import damaged, require_beginnings

__all__ = ["Kernels", "kernels"]

SIDE_BY_SIDE = 16


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled functions."""

    decode: Callable[..., int]
    encode: Callable[..., None]

    def decode_rows(
        self, model: CompactModel, contexts: Contexts, streams: Sequence[bytes], numbers: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.int64]:
        """Do what `streams.decode_rows` does."""
        require_beginnings(streams, numbers)
        own = kernel_model(model)
        rows, lengths_B = len(streams), np.array([len(stream) for stream in streams], np.int64)
        data = np.frombuffer(b"".join(streams), np.uint8)
        ids_BT = np.zeros((rows, len(contexts.levels_T)), np.int64)
        wrong = self.decode(data.copy(), lengths_B, _order(contexts, own.slots), *own.arrays, ids_BT)
        if wrong >= 0:
            raise damaged(wrong, ids_BT.shape[1], numbers)
        return ids_BT

    def encode_rows(self, model: CompactModel, contexts: Contexts, ids_BT: npt.NDArray[np.int64]) -> list[bytes]:
        """Do what `streams.encode_rows` does."""
        own, rows = kernel_model(model), len(ids_BT)
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
    """Return the compiled functions, or None where numba is not installed. The first call compiles for some seconds."""
    try:
        import numba
    except ImportError:
        return None
    before = numba.config.CACHE_DIR, numba.config.SLP_VECTORIZE
    numba.config.CACHE_DIR, numba.config.SLP_VECTORIZE = str(_cache_folder()), 1
    try:
        return _compiled(numba)
    finally:
        numba.config.CACHE_DIR, numba.config.SLP_VECTORIZE = before


def _cache_folder() -> Path:
    """Return a folder of this user alone on this machine: what lies there is run."""
    folder = Path(tempfile.gettempdir()) / f"tokenshards-numba-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.stat()
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o077):
        return Path(tempfile.mkdtemp(prefix="tokenshards-numba-"))  # another user's: nothing is kept then
    return folder


def _compiled(numba: Any) -> Kernels:
    exact = {"contract", "reassoc", "nsz", "nnan", "ninf"}
    options = {"cache": True, "error_model": "numpy", "boundscheck": False, "nogil": True, "fastmath": exact}
    inline = numba.njit(error_model="numpy", boundscheck=False, fastmath=exact, inline="always")
    width, f32 = SIDE_BY_SIDE, np.float32
    hidden_most, no_chance = f32(127 * 128 + 127), f32(NO_CHANCE)

    @inline
    def look_around(order, place, level, starts, sizes, base, tables, ids_TG, rows_NG, hidden_GH):  # type: ignore[no-untyped-def]
        slots = starts.shape[1]
        for slot in range(slots):
            there, first = order[place, 2 + slot], starts[level, slot]
            if there >= 0:
                for g in range(width):
                    rows_NG[slot, g] = first + ids_TG[there, g]
            else:
                for g in range(width):
                    rows_NG[slot, g] = first + sizes[level, slot]
        for g in range(width):
            for k in range(32):
                hidden_GH[g, k] = base[k]
            for slot in range(0, slots, 4):
                r0, r1, r2, r3 = rows_NG[slot, g], rows_NG[slot + 1, g], rows_NG[slot + 2, g], rows_NG[slot + 3, g]
                for k in range(32):
                    hidden_GH[g, k] += (tables[r0, k] + tables[r1, k]) + (tables[r2, k] + tables[r3, k])
            for k in range(32):
                hidden_GH[g, k] = f32(np.int32(min(max(hidden_GH[g, k], f32(0)), hidden_most) * f32(1 / 128)))

    @inline
    def expect(first, path_G, hidden_GH, weights, biases, down, powers, score_8G, step_8G, sum_8G, inverse_G):  # type: ignore[no-untyped-def]
        for g in range(width):
            v = first + path_G[g]
            a0, a1, a2, a3 = biases[v, 0], biases[v, 1], biases[v, 2], biases[v, 3]
            a4, a5, a6, a7 = biases[v, 4], biases[v, 5], biases[v, 6], biases[v, 7]
            for k in range(32):
                x = hidden_GH[g, k]
                a0 += weights[v, k, 0] * x
                a1 += weights[v, k, 1] * x
                a2 += weights[v, k, 2] * x
                a3 += weights[v, k, 3] * x
                a4 += weights[v, k, 4] * x
                a5 += weights[v, k, 5] * x
                a6 += weights[v, k, 6] * x
                a7 += weights[v, k, 7] * x
            score_8G[0, g], score_8G[1, g], score_8G[2, g], score_8G[3, g] = a0, a1, a2, a3
            score_8G[4, g], score_8G[5, g], score_8G[6, g], score_8G[7, g] = a4, a5, a6, a7
        for g in range(width):
            left = max(max(score_8G[0, g], score_8G[1, g]), max(score_8G[2, g], score_8G[3, g]))
            inverse_G[g] = max(left, max(max(score_8G[4, g], score_8G[5, g]), max(score_8G[6, g], score_8G[7, g])))
        for i in range(8):
            for g in range(width):
                step_8G[i, g] = np.int32(min((f32(inverse_G[g]) - score_8G[i, g]) * down, no_chance))
        for g in range(width):
            total = 0.0
            for i in range(8):
                total += powers[step_8G[i, g]]
                sum_8G[i, g] = total
        for g in range(width):
            inverse_G[g] = np.floor(2146959360.0 / sum_8G[7, g])  # (2^15 - 8) * 2^16

    def decode(data, lengths_B, order, starts, sizes, firsts, tables, bases, weights, biases, codes, paths, down, powers, ids_BT):  # type: ignore[no-untyped-def]
        count = order.shape[0]
        hidden_GH, score_8G = np.empty((width, 32), np.float32), np.empty((8, width), np.float32)
        step_8G, sum_8G = np.empty((8, width), np.int32), np.empty((8, width), np.float64)
        inverse_G, low_G = np.empty(width, np.float64), np.empty(width, np.float64)
        begin_G, end_G, branch_G = np.empty(width, np.float64), np.empty(width, np.float64), np.empty(width, np.int64)
        state_G, next_G, stop_G = np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, np.int64)
        path_G, wrong_G = np.empty(width, np.int64), np.empty(width, np.int64)
        rows_NG, ids_TG = np.empty((starts.shape[1], width), np.int64), np.zeros((count, width), np.int64)
        at, found = 0, -1
        for row in range(0, len(lengths_B), width):
            own = min(width, len(lengths_B) - row)
            for g in range(width):
                state_G[g], next_G[g], stop_G[g], wrong_G[g] = 1, 0, 0, 0
            for g in range(own):
                length = lengths_B[row + g]
                head = length if length <= 4 else 4 - length % 2
                state = np.int64(0)
                for byte in range(head):
                    state = state << 8 | np.int64(data[at + byte])
                wrong_G[g] = 0
                state_G[g], next_G[g], stop_G[g] = state, at + head, at + length
                at += length
            for place in range(count):
                level = order[place, 0]
                first_base, first_node, first_code = firsts[level, 0], firsts[level, 1], firsts[level, 2]
                look_around(order, place, level, starts, sizes, bases[first_base + order[place, 1]], tables, ids_TG, rows_NG, hidden_GH)
                node = first_node
                for g in range(width):
                    path_G[g] = 0
                for _ in range(firsts[level, 4]):
                    expect(node, path_G, hidden_GH, weights, biases, down[level], powers, score_8G, step_8G, sum_8G, inverse_G)
                    for g in range(width):
                        low_G[g] = np.float64(state_G[g] & 32767)
                        begin_G[g], end_G[g], branch_G[g] = 0.0, 32768.0, 0
                    for i in range(7):
                        for g in range(width):
                            edge = np.floor(sum_8G[i, g] * inverse_G[g] * (1 / 65536)) + (i + 1.0)
                            under = edge <= low_G[g]
                            begin_G[g] = edge if under else begin_G[g]
                            end_G[g] = end_G[g] if under else min(end_G[g], edge)
                            branch_G[g] += 1 if under else 0
                    for g in range(width):
                        state = np.int64(end_G[g] - begin_G[g]) * (state_G[g] >> 15) + np.int64(low_G[g] - begin_G[g])
                        if state < 65536 and next_G[g] < stop_G[g]:
                            state = state << 16 | np.int64(data[next_G[g]]) | np.int64(data[next_G[g] + 1]) << 8
                            next_G[g] += 2
                        state_G[g] = state
                        path_G[g] = path_G[g] * 8 + branch_G[g]
                    node = first_node + (node - first_node) * 8 + 1
                for g in range(width):
                    code = codes[first_code + path_G[g]]
                    wrong_G[g] |= code < 0
                    ids_TG[place, g] = max(code, 0)
            for g in range(own):
                if found < 0 and (wrong_G[g] or state_G[g] != 1 or next_G[g] != stop_G[g]):
                    found = row + g
                for place in range(count):
                    ids_BT[row + g, place] = ids_TG[place, g]
        return found

    def encode(ids_BT, digits, order, starts, sizes, firsts, tables, bases, weights, biases, codes, paths, down, powers, bytes_BS, used_B):  # type: ignore[no-untyped-def]
        count = order.shape[0]
        hidden_GH, score_8G = np.empty((width, 32), np.float32), np.empty((8, width), np.float32)
        step_8G, sum_8G = np.empty((8, width), np.int32), np.empty((8, width), np.float64)
        inverse_G = np.empty(width, np.float64)
        path_G, whole_G = np.empty(width, np.int64), np.empty(width, np.int64)
        rows_NG, ids_TG = np.empty((starts.shape[1], width), np.int64), np.zeros((count, width), np.int64)
        start_SG, share_SG = np.empty((digits, width), np.int64), np.empty((digits, width), np.int64)
        for row in range(0, len(ids_BT), width):
            own = min(width, len(ids_BT) - row)
            for g in range(own):
                for place in range(count):
                    ids_TG[place, g] = ids_BT[row + g, place]
            step = 0
            for place in range(count):
                level = order[place, 0]
                first_base, first_node, first_path = firsts[level, 0], firsts[level, 1], firsts[level, 3]
                look_around(order, place, level, starts, sizes, bases[first_base + order[place, 1]], tables, ids_TG, rows_NG, hidden_GH)
                node, left = first_node, firsts[level, 4]
                for g in range(width):
                    whole_G[g], path_G[g] = paths[first_path + ids_TG[place, g]], 0
                while left > 0:
                    left -= 1
                    expect(node, path_G, hidden_GH, weights, biases, down[level], powers, score_8G, step_8G, sum_8G, inverse_G)
                    for g in range(width):
                        branch = whole_G[g] >> 3 * left & 7
                        begin, end = 0, 32768
                        if branch > 0:
                            begin = np.int64(np.floor(sum_8G[branch - 1, g] * inverse_G[g] * (1 / 65536))) + branch
                        if branch < 7:
                            end = np.int64(np.floor(sum_8G[branch, g] * inverse_G[g] * (1 / 65536))) + branch + 1
                        start_SG[step, g], share_SG[step, g] = begin, end - begin
                        path_G[g] = path_G[g] * 8 + branch
                    step += 1
                    node = first_node + (node - first_node) * 8 + 1
            for g in range(own):
                state, at = 1, bytes_BS.shape[1]
                for place in range(digits - 1, -1, -1):
                    share = share_SG[place, g]
                    if state >= share << 17:
                        at -= 2
                        bytes_BS[row + g, at], bytes_BS[row + g, at + 1] = state & 255, state >> 8 & 255
                        state >>= 16
                    state = (state // share << 15) + state % share + start_SG[place, g]
                while state > 0:
                    at -= 1
                    bytes_BS[row + g, at] = state & 255
                    state >>= 8
                used_B[row + g] = at

    i8, f8, f4 = numba.int64, numba.float64, numba.float32
    model = (i8[:, ::1], i8[:, ::1], i8[:, ::1], f4[:, ::1], f4[:, ::1], f4[:, :, ::1], f4[:, ::1], i8[::1], i8[::1], f4[::1], f8[::1])
    decoder = numba.njit(i8(numba.uint8[::1], i8[::1], i8[:, ::1], *model, i8[:, ::1]), **options)(decode)
    encoder = numba.njit(numba.void(i8[:, ::1], i8, i8[:, ::1], *model, numba.uint8[:, ::1], i8[::1]), **options)(encode)
    return Kernels(decoder, encoder)
