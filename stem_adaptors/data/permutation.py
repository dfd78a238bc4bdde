"""Seeded permutations that are computed, never stored: a Feistel network with cycle walking."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Permutation"]

Ints: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]

_ROUNDS = 6
_SMALL_SIZE, _SMALL_ROUNDS = 4096, 12
_WORD = (1 << 64) - 1
_HALF = np.uint64(32)
# Odd constants of MurmurHash3's 64-bit finaliser (Appleby, public domain).
_MULTIPLY_1 = np.uint64(0xFF51AFD7ED558CCD)
_MULTIPLY_2 = np.uint64(0xC4CEB9FE1A85EC53)


class Permutation:
    """A bijection of 0 .. size - 1, chosen by a 64-bit key; equal on every machine; any size below 2**62.

    A Feistel network over Z_a x Z_b, with a * b just above the size (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002,
    section 5), and cycle walking: the few values outside the range are encrypted again until they fall inside. Nothing is stored.
    """

    __slots__ = ("_columns", "_keys", "_rows", "size")

    def __init__(self, size: int, key: int) -> None:
        root = math.isqrt(max(size - 1, 0)) + 1
        # Choose the nearly square table with the fewest unused places: each value in an unused place costs one more pass.
        rows = min(range(root, root + min(root // 8, 32) + 1), key=lambda rows: -size % rows)
        self.size = size
        self._rows, self._columns = np.uint64(rows), np.uint64(-(-size // rows))
        self._keys = [np.uint64(value) for value in _round_keys(key, _SMALL_ROUNDS if size <= _SMALL_SIZE else _ROUNDS)]

    def __call__(self, positions: npt.NDArray[Any]) -> Ints:
        """Return the permuted positions as int64. Positions outside 0 .. size - 1 raise IndexError."""
        if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < self.size:
            raise IndexError(f"positions {positions.min()} to {positions.max()}; expected 0 to {self.size - 1}")
        words = self._encrypt(positions.astype(np.uint64))
        outside = np.flatnonzero(words >= np.uint64(self.size))
        while outside.size:
            again = self._encrypt(words[outside])
            words[outside] = again
            outside = outside[again >= np.uint64(self.size)]
        return words.view(np.int64)

    def _encrypt(self, words: Words) -> Words:
        row = words // self._columns
        column = words - row * self._columns
        for even, odd in zip(self._keys[::2], self._keys[1::2], strict=True):
            column = _shifted(column, row, even, self._columns)
            row = _shifted(row, column, odd, self._rows)
        row *= self._columns
        row += column
        return row


def _shifted(values: Words, other: Words, key: np.uint64, modulus: np.uint64) -> Words:
    """Return (values + hash(other)) mod modulus."""
    hashed = other ^ key
    hashed *= _MULTIPLY_1
    hashed ^= hashed >> _HALF
    hashed *= _MULTIPLY_2
    hashed >>= _HALF
    # Scaling 32 random bits to the modulus needs no division.
    hashed *= modulus
    hashed >>= _HALF
    hashed += values
    # A difference below 0 wraps to a huge number, so the minimum of both is the remainder.
    np.minimum(hashed, hashed - modulus, out=hashed)
    return hashed


def _round_keys(key: int, rounds: int) -> list[int]:
    """Return the first `rounds` outputs of SplitMix64 (Steele, Lea and Flood, 2014) from `key`."""
    keys = []
    for number in range(1, rounds + 1):
        value = (key + number * 0x9E3779B97F4A7C15) & _WORD
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
        keys.append(value ^ (value >> 31))
    return keys
