"""Counting ids: what is padding is no id."""

from __future__ import annotations

import numpy as np

from tokenshards.pipeline.records import TokenBatch

IDS_BLQ = np.array([[[1, 0], [2, 3], [1, 3]], [[2, 1], [0, 0], [0, 0]]], np.uint8)


def counts(tokens: TokenBatch) -> list[list[int]]:
    return [counts_K.tolist() for counts_K in tokens.count_ids((4, 5))]


def test_ids_of_rows_of_one_length() -> None:
    tokens = TokenBatch(IDS_BLQ)
    assert tokens.sites_B.tolist() == [3, 3]
    assert counts(tokens) == [[2, 2, 2, 0], [3, 1, 0, 2, 0]]


def test_padding_behind_shorter_rows_is_not_counted() -> None:
    by_length = TokenBatch(IDS_BLQ, lengths_B=np.array([3, 1], np.int32))
    by_shape = TokenBatch(IDS_BLQ, shapes_BD=np.array([[1, 3], [1, 1]], np.int32))
    for tokens in (by_length, by_shape):
        assert tokens.sites_B.tolist() == [3, 1]
        assert counts(tokens) == [[0, 2, 2, 0], [1, 1, 0, 2, 0]]
