"""Counting: what is padding is no id, and what is not taken is counted in bounded size."""

from __future__ import annotations

import numpy as np

from tokenshards.pipeline.records import MAX_LEFT_OUT_KINDS, OTHER_KINDS, AbsentRecord, LeftOutRecord, TokenBatch, Untaken

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


def test_what_is_not_taken_stays_bounded() -> None:
    counted = Untaken()
    for number in range(1000):
        counted.take(LeftOutRecord(kind=f"kind {number:04d}", count=2, example="x" * 1000))
    counted.take(LeftOutRecord(kind="kind 0001", count=0, example="nothing"))
    for name in ("a" * 1000, "b"):
        counted.take(AbsentRecord(sample_id=name))
    assert counted.left_out_count == 2000 and len(counted.left_out) == MAX_LEFT_OUT_KINDS + 1 and OTHER_KINDS in counted.left_out
    assert (counted.absent, counted.absent_example) == (2, "a" * 200) and max(map(len, counted.left_out_examples.values())) == 200
    twice = Untaken()
    for _ in range(2):
        twice.add(counted)
    assert twice.left_out_count == 4000 and twice.absent == 4 and len(twice.left_out) == MAX_LEFT_OUT_KINDS + 1
    assert counted.left_out_count == 2000, "the summand stays as it is"
