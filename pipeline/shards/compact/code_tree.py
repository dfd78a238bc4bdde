"""An id as a path of base-8 digits, so that a coder chooses among eight branches at a time and near codes share their first digits.

Shapes: K codes, D channels, J digits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["BRANCHES", "digits_for", "tree_paths"]

BRANCHES = 8


def digits_for(codes: int) -> int:
    """Return how many base-8 digits tell so many codes apart, at least 1."""
    digits = 1
    while BRANCHES**digits < codes:
        digits += 1
    return digits


def tree_paths(vectors_KD: npt.NDArray[np.float32] | None, codes: int) -> npt.NDArray[np.uint32]:
    """Return the path of each code, uint32 [K]: a number of J base-8 digits, all different.

    Without vectors the paths are the ids. With vectors a set of codes is halved along its first principal axis, again and again, so that
    near codes share digits.
    """
    paths_K = np.arange(codes, dtype=np.uint32)
    if vectors_KD is None or codes <= BRANCHES:
        return paths_K
    bits = 3 * digits_for(codes)
    paths_K = np.zeros(codes, np.uint32)
    parts = [np.arange(codes)]
    for bit in range(bits):
        halves = []
        for members in parts:
            low, high = _halved(vectors_KD, members)
            paths_K[high] |= np.uint32(1 << (bits - bit - 1))
            halves += [part for part in (low, high) if len(part)]
        parts = halves
    return paths_K


def _halved(vectors_KD: npt.NDArray[np.float32], members: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return two halves along the first principal axis, the first the larger one. Ties go by id."""
    if len(members) < 2:
        return members, members[:0]
    own = vectors_KD[members].astype(np.float64)
    own -= own.mean(axis=0)
    _, _, axes = np.linalg.svd(own, full_matrices=False)
    axis = axes[0] * (1 if axes[0][np.abs(axes[0]).argmax()] > 0 else -1)
    order = np.argsort(own @ axis, kind="stable")
    middle = len(members) // 2
    return members[order[: len(members) - middle]], members[order[len(members) - middle :]]
