"""Models of random integers, and rows of ids, for every layout."""

from __future__ import annotations

import numpy as np

from tokenshards.pipeline.shards.compact.code_tree import BRANCHES, digits_for, tree_paths
from tokenshards.pipeline.shards.compact.contexts import base_count, slots_of
from tokenshards.pipeline.shards.compact.model import NEVER, CompactModel, LevelModel, node_starts
from tokenshards.pipeline.shards.spec import TokenizerSpec


def random_model(spec: TokenizerSpec, seed: int = 0, hidden: int = 8) -> CompactModel:
    """Any integers within the bounds make a model: what it expects has nothing to do with the ids."""
    rng = np.random.default_rng(seed)
    levels = []
    for level, slots in enumerate(slots_of(spec.layout)):
        sizes, codes = tuple(spec.vocabulary[slot.level] for slot in slots), spec.vocabulary[level]
        vectors_KD = rng.standard_normal((codes, 3)).astype(np.float32) if codes <= 1024 else None
        paths_K = tree_paths(vectors_KD, codes)
        first, digits = node_starts(digits_for(codes)), digits_for(codes)
        biases_V8 = np.full((first[-1], BRANCHES), NEVER, np.int32)
        for digit in range(digits):
            down, path_K = 3 * (digits - digit - 1), paths_K.astype(np.int64)
            where = first[digit] + (path_K >> down + 3), path_K >> down & 7
            biases_V8[where] = rng.integers(-2000, 2000, codes)
        levels.append(
            LevelModel(
                slots=slots,
                sizes=sizes,
                codes=codes,
                tables_RH=rng.integers(-9000, 9000, (sum(size + 1 for size in sizes), hidden)).astype(np.int16),
                bases_BH=rng.integers(-3000, 9000, (base_count(spec.layout), hidden)).astype(np.int32),
                weights_V8H=rng.integers(-127, 128, (first[-1], BRANCHES, hidden)).astype(np.int8),
                biases_V8=biases_V8,
                down=int(rng.integers(0, 7)),
                paths_K=paths_K,
            )
        )
        levels[-1].check()
    return CompactModel(tuple(levels))


def damaged(streams: list[bytes], rng: np.random.Generator, trial: int) -> list[bytes]:
    """Return the streams of a batch with two of them damaged: replaced by random bytes, cut, or with a flipped bit, in turn."""
    found = list(streams)
    for row in rng.choice(len(streams), 2, replace=False):
        random, cut = rng.bytes(int(rng.integers(0, 30))), streams[row][: int(rng.integers(0, len(streams[row])))]
        flipped = bytearray(streams[row])
        flipped[int(rng.integers(0, len(flipped)))] ^= 1 << int(rng.integers(0, 8))
        found[row] = (random, cut, bytes(flipped))[trial % 3]
    return found
