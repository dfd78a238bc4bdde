"""The loops of `lockstep`, which numba compiles when this module is imported. Only `lockstep.kernels` imports it.

numba keeps the machine code of a module's functions under the names of these functions: what they call must not change under a folder.
So `lockstep` names the folder by the source of all modules here.

Shapes: G = 16 rows side by side, T ids of a row, N slots, H = 32 hidden numbers, R table rows, V nodes, S digits of a row,
B rows.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from tokenshards.pipeline.shards.compact.processor import has_avx2

if has_avx2():
    from tokenshards.pipeline.shards.compact.edges_avx2 import WEIGHT_ORDER, branch_of, edges
else:
    from tokenshards.pipeline.shards.compact.edges_plain import WEIGHT_ORDER, branch_of, edges

__all__ = ["WEIGHT_ORDER", "decode", "encode"]

SIDE_BY_SIDE = 16
C0, C7, C127 = np.int32(0), np.int32(7), np.int32(127)
_inline = {"error_model": "numpy", "boundscheck": False, "inline": "always"}


def _clamped(total: int) -> int:
    return np.uint8(min(max(total >> C7, C0), C127))  # type: ignore[return-value]


clamped = numba.njit(**_inline)(_clamped)


def _look_around(
    order: Any,
    place: int,
    level: int,
    starts: Any,
    sizes: Any,
    base_H: Any,
    tables_RH: Any,
    ids_TG: Any,
    rows_NG: Any,
    sum_H: Any,
    hidden_GH: Any,
) -> None:
    """Put the hidden numbers of an id of each row into `hidden_GH`. The usual counts of slots have sums without a loop."""
    slots = starts.shape[1]
    for slot in range(slots):
        there, first = order[place, 2 + slot], starts[level, slot]
        if there >= 0:
            for g in range(SIDE_BY_SIDE):
                rows_NG[slot, g] = first + ids_TG[there, g]
        else:
            for g in range(SIDE_BY_SIDE):
                rows_NG[slot, g] = first + sizes[level, slot]
    i32 = np.int32
    for g in range(SIDE_BY_SIDE):
        r0, r1, r2, r3 = rows_NG[0, g], rows_NG[1, g], rows_NG[2, g], rows_NG[3, g]
        if slots == 8:
            r4, r5, r6, r7 = rows_NG[4, g], rows_NG[5, g], rows_NG[6, g], rows_NG[7, g]
            for k in range(32):
                first_four = i32(tables_RH[r0, k]) + i32(tables_RH[r1, k]) + i32(tables_RH[r2, k]) + i32(tables_RH[r3, k])
                next_four = i32(tables_RH[r4, k]) + i32(tables_RH[r5, k]) + i32(tables_RH[r6, k]) + i32(tables_RH[r7, k])
                hidden_GH[g, k] = clamped(base_H[k] + first_four + next_four)
        elif slots == 12:
            r4, r5, r6, r7 = rows_NG[4, g], rows_NG[5, g], rows_NG[6, g], rows_NG[7, g]
            r8, r9, ra, rb = rows_NG[8, g], rows_NG[9, g], rows_NG[10, g], rows_NG[11, g]
            for k in range(32):
                first_four = i32(tables_RH[r0, k]) + i32(tables_RH[r1, k]) + i32(tables_RH[r2, k]) + i32(tables_RH[r3, k])
                next_four = i32(tables_RH[r4, k]) + i32(tables_RH[r5, k]) + i32(tables_RH[r6, k]) + i32(tables_RH[r7, k])
                last_four = i32(tables_RH[r8, k]) + i32(tables_RH[r9, k]) + i32(tables_RH[ra, k]) + i32(tables_RH[rb, k])
                hidden_GH[g, k] = clamped(base_H[k] + first_four + next_four + last_four)
        else:
            for k in range(32):
                sum_H[k] = base_H[k] + i32(tables_RH[r0, k]) + i32(tables_RH[r1, k]) + i32(tables_RH[r2, k]) + i32(tables_RH[r3, k])
            for slot in range(4, slots):
                row = rows_NG[slot, g]
                for k in range(32):
                    sum_H[k] += i32(tables_RH[row, k])
            for k in range(32):
                hidden_GH[g, k] = clamped(sum_H[k])


look_around = numba.njit(**_inline)(_look_around)


def _decode(
    data: Any,
    lengths_B: Any,
    order: Any,
    starts: Any,
    sizes: Any,
    firsts: Any,
    tables_RH: Any,
    bases: Any,
    weights_VH8: Any,
    biases_V8: Any,
    codes: Any,
    paths: Any,
    down: Any,
    powers: Any,
    ids_BT: Any,
) -> int:
    """Decode streams that lie one after the other; return the first damaged row, -1 if there is none."""
    count = order.shape[0]
    sum_H, hidden_GH = np.empty(32, np.int32), np.empty((SIDE_BY_SIDE, 32), np.uint8)
    edges_G = np.zeros((SIDE_BY_SIDE, 16), np.int32)
    state_G, next_G, stop_G = np.empty(SIDE_BY_SIDE, np.int64), np.empty(SIDE_BY_SIDE, np.int64), np.empty(SIDE_BY_SIDE, np.int64)
    path_G, wrong_G = np.empty(SIDE_BY_SIDE, np.int64), np.empty(SIDE_BY_SIDE, np.int64)
    rows_NG, ids_TG = np.empty((starts.shape[1], SIDE_BY_SIDE), np.int64), np.zeros((count, SIDE_BY_SIDE), np.int64)
    at, found = 0, -1
    for row in range(0, len(lengths_B), SIDE_BY_SIDE):
        own = min(SIDE_BY_SIDE, len(lengths_B) - row)
        for g in range(SIDE_BY_SIDE):
            state_G[g], next_G[g], stop_G[g], wrong_G[g] = 1, 0, 0, 0
        for g in range(own):
            length = lengths_B[row + g]
            head = length if length <= 4 else 4 - length % 2
            state = np.int64(0)
            for byte in range(head):
                state = state << 8 | np.int64(data[at + byte])
            state_G[g], next_G[g], stop_G[g] = state, at + head, at + length
            at += length
        for place in range(count):
            level = order[place, 0]
            first_base, node, first_code = firsts[level, 0], firsts[level, 1], firsts[level, 2]
            base_H = bases[first_base + order[place, 1]]
            look_around(order, place, level, starts, sizes, base_H, tables_RH, ids_TG, rows_NG, sum_H, hidden_GH)
            first_node = node
            for g in range(SIDE_BY_SIDE):
                path_G[g] = 0
            for _ in range(firsts[level, 4]):
                for g in range(SIDE_BY_SIDE):
                    edges(weights_VH8, node + path_G[g], hidden_GH, g, biases_V8, down[level], powers, edges_G)
                for g in range(SIDE_BY_SIDE):
                    low = state_G[g] & 32767
                    branch = branch_of(edges_G, g, low)
                    begin = np.int64(edges_G[g, branch])
                    state = (np.int64(edges_G[g, branch + 1]) - begin) * (state_G[g] >> 15) + low - begin
                    if state < 65536 and next_G[g] < stop_G[g]:
                        state = state << 16 | np.int64(data[next_G[g]]) | np.int64(data[next_G[g] + 1]) << 8
                        next_G[g] += 2
                    state_G[g] = state
                    path_G[g] = path_G[g] * 8 + branch
                node = first_node + (node - first_node) * 8 + 1
            for g in range(SIDE_BY_SIDE):
                code = codes[first_code + path_G[g]]
                wrong_G[g] |= code < 0
                ids_TG[place, g] = max(code, 0)
        for g in range(own):
            if found < 0 and (wrong_G[g] or state_G[g] != 1 or next_G[g] != stop_G[g]):
                found = row + g
            for place in range(count):
                ids_BT[row + g, place] = ids_TG[place, g]
    return found


def _encode(
    ids_BT: Any,
    digits: int,
    order: Any,
    starts: Any,
    sizes: Any,
    firsts: Any,
    tables_RH: Any,
    bases: Any,
    weights_VH8: Any,
    biases_V8: Any,
    codes: Any,
    paths: Any,
    down: Any,
    powers: Any,
    bytes_BS: Any,
    used_B: Any,
) -> None:
    """Put the stream of each row at the end of its `bytes_BS`, and where the stream begins into `used_B`."""
    count = order.shape[0]
    sum_H, hidden_GH = np.empty(32, np.int32), np.empty((SIDE_BY_SIDE, 32), np.uint8)
    edges_G = np.zeros((SIDE_BY_SIDE, 16), np.int32)
    path_G, whole_G = np.empty(SIDE_BY_SIDE, np.int64), np.empty(SIDE_BY_SIDE, np.int64)
    rows_NG, ids_TG = np.empty((starts.shape[1], SIDE_BY_SIDE), np.int64), np.zeros((count, SIDE_BY_SIDE), np.int64)
    start_SG, share_SG = np.empty((digits, SIDE_BY_SIDE), np.int64), np.empty((digits, SIDE_BY_SIDE), np.int64)
    for row in range(0, len(ids_BT), SIDE_BY_SIDE):
        own = min(SIDE_BY_SIDE, len(ids_BT) - row)
        for g in range(own):
            for place in range(count):
                ids_TG[place, g] = ids_BT[row + g, place]
        step = 0
        for place in range(count):
            level = order[place, 0]
            first_base, node, first_path = firsts[level, 0], firsts[level, 1], firsts[level, 3]
            base_H = bases[first_base + order[place, 1]]
            look_around(order, place, level, starts, sizes, base_H, tables_RH, ids_TG, rows_NG, sum_H, hidden_GH)
            first_node, left = node, firsts[level, 4]
            for g in range(SIDE_BY_SIDE):
                whole_G[g], path_G[g] = paths[first_path + ids_TG[place, g]], 0
            while left > 0:
                left -= 1
                for g in range(SIDE_BY_SIDE):
                    edges(weights_VH8, node + path_G[g], hidden_GH, g, biases_V8, down[level], powers, edges_G)
                for g in range(SIDE_BY_SIDE):
                    branch = whole_G[g] >> 3 * left & 7
                    begin = np.int64(edges_G[g, branch])
                    start_SG[step, g], share_SG[step, g] = begin, np.int64(edges_G[g, branch + 1]) - begin
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


_int64, _int32, _int8 = numba.int64, numba.int32, numba.int8
_model = (
    *(_int64[:, ::1],) * 3,
    numba.int16[:, ::1],
    _int32[:, ::1],
    _int8[:, :, ::1],
    _int32[:, ::1],
    *(_int64[::1],) * 4,
)
# All float32 numbers are whole and below 2^24, so that no order of adding rounds any of them.
_exact = {"contract", "reassoc", "nsz", "nnan", "ninf"}
_options = {"cache": True, "error_model": "numpy", "boundscheck": False, "nogil": True, "fastmath": _exact}
decode = numba.njit(_int64(numba.uint8[::1], _int64[::1], _int64[:, ::1], *_model, _int64[:, ::1]), **_options)(_decode)
encode = numba.njit(numba.void(_int64[:, ::1], _int64, _int64[:, ::1], *_model, numba.uint8[:, ::1], _int64[::1]), **_options)(_encode)
