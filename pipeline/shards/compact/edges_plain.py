"""Where the shares of eight branches begin, for any processor. Imports numba.

All numbers are whole and below 2^24 in float32, so that no order of adding rounds any of them.

Shapes: V nodes, G rows side by side, H = 32 hidden numbers.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["WEIGHT_ORDER", "branch_of", "edges"]

WEIGHT_ORDER = tuple(hidden + 32 * branch for hidden in range(32) for branch in range(8))
"""Places in the 8 x 32 weights of a node, as they lie here: one hidden number of each branch, then the next one."""
MOST = np.float32(4096)


def _edges(weights_VH8: Any, node: int, hidden_GH: Any, row: int, biases_V8: Any, down: int, powers: Any, edges_G: Any) -> None:
    """Put c_1 … c_8 into places 1 to 8 of the row's edges; place 0 is 0."""
    f32 = np.float32
    a0, a1, a2, a3 = f32(biases_V8[node, 0]), f32(biases_V8[node, 1]), f32(biases_V8[node, 2]), f32(biases_V8[node, 3])
    a4, a5, a6, a7 = f32(biases_V8[node, 4]), f32(biases_V8[node, 5]), f32(biases_V8[node, 6]), f32(biases_V8[node, 7])
    for k in range(32):
        x = f32(hidden_GH[row, k])
        a0 += f32(weights_VH8[node, k, 0]) * x
        a1 += f32(weights_VH8[node, k, 1]) * x
        a2 += f32(weights_VH8[node, k, 2]) * x
        a3 += f32(weights_VH8[node, k, 3]) * x
        a4 += f32(weights_VH8[node, k, 4]) * x
        a5 += f32(weights_VH8[node, k, 5]) * x
        a6 += f32(weights_VH8[node, k, 6]) * x
        a7 += f32(weights_VH8[node, k, 7]) * x
    best = max(max(max(a0, a1), max(a2, a3)), max(max(a4, a5), max(a6, a7)))
    scale = f32(1) / f32(1 << down)
    s0 = powers[np.int64(min((best - a0) * scale, MOST))]
    s1 = s0 + powers[np.int64(min((best - a1) * scale, MOST))]
    s2 = s1 + powers[np.int64(min((best - a2) * scale, MOST))]
    s3 = s2 + powers[np.int64(min((best - a3) * scale, MOST))]
    s4 = s3 + powers[np.int64(min((best - a4) * scale, MOST))]
    s5 = s4 + powers[np.int64(min((best - a5) * scale, MOST))]
    s6 = s5 + powers[np.int64(min((best - a6) * scale, MOST))]
    s7 = s6 + powers[np.int64(min((best - a7) * scale, MOST))]
    inverse = np.int64(2146959360.0 / np.float64(s7))  # (2^15 - 8) * 2^16
    edges_G[row, 1] = (s0 * inverse >> 16) + 1
    edges_G[row, 2] = (s1 * inverse >> 16) + 2
    edges_G[row, 3] = (s2 * inverse >> 16) + 3
    edges_G[row, 4] = (s3 * inverse >> 16) + 4
    edges_G[row, 5] = (s4 * inverse >> 16) + 5
    edges_G[row, 6] = (s5 * inverse >> 16) + 6
    edges_G[row, 7] = (s6 * inverse >> 16) + 7
    edges_G[row, 8] = 32768


def _branch_of(edges_G: Any, row: int, low: int) -> int:
    """Return the branch whose share holds a number."""
    found = 0
    for i in range(1, 8):
        found += edges_G[row, i] <= low
    return found


_options = {"error_model": "numpy", "boundscheck": False, "inline": "always"}
edges, branch_of = (numba.njit(**_options)(function) for function in (_edges, _branch_of))
