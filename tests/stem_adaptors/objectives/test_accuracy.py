"""Counts of right answers against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.objectives.accuracy import Counts
from tokenshards.stem_adaptors.ranks import Ranks


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(1, 9), rows=st.integers(1, 40), seed=st.integers(0, 1000))
def test_counts_equal_a_loop(classes: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.tile(np.arange(classes, dtype=np.float32), (rows, 1)), axis=1)
    labels = rng.integers(-1, classes, rows)
    weights = rng.integers(0, 2, rows).astype(np.float32)
    losses = rng.random(rows).astype(np.float32)
    counts = Counts(classes, torch.device("cpu"), confusion=True)
    for part in np.array_split(np.arange(rows), 3):
        if len(part):
            counts.add(*(torch.from_numpy(values[part]) for values in (logits, labels, weights, losses)))
    found = counts.gather(Ranks())
    confusion = np.zeros((classes, classes), int)
    top5 = images = 0
    loss = 0.0
    for row in range(rows):
        if labels[row] < 0 or weights[row] == 0:
            continue
        order = sorted(range(classes), key=lambda index: -logits[row, index])
        confusion[labels[row], order[0]] += 1
        top5 += labels[row] in order[:5]
        images += 1
        loss += float(losses[row])
    assert found.images == images
    assert found.top5_hits == top5
    assert (found.confusion_CC == confusion).all()
    assert (found.class_counts_2C == [confusion.sum(1), np.diag(confusion)]).all()
    assert found.loss == pytest.approx(loss / max(1, images), rel=1e-5)
    assert found.top1 == pytest.approx(np.trace(confusion) / max(1, images))


def test_the_report_names_classes_and_leaves_empty_ones_open() -> None:
    counts = Counts(3, torch.device("cpu"))
    logits = torch.eye(3)[[0, 0, 1]]
    counts.add(logits, torch.tensor([0, 1, 1]), torch.ones(3))
    report = counts.gather(Ranks()).to_json(["cat", "dog", 7])
    assert report["top1"] == pytest.approx(2 / 3)
    assert report["per_class"] == [
        {"class": "cat", "images": 1, "accuracy": 1.0},
        {"class": "dog", "images": 2, "accuracy": 0.5},
        {"class": 7, "images": 0, "accuracy": None},
    ]


def test_counts_of_many_classes_take_little_memory_and_their_matrix_is_refused() -> None:
    cpu = torch.device("cpu")
    counts = Counts(4_000, cpu)
    counts.add(torch.eye(4_000, dtype=torch.bfloat16)[:2], torch.tensor([0, 5]), torch.ones(2))
    found = counts.gather(Ranks())
    assert (found.images, found.top1, found.confusion_CC) == (2, 0.5, None)
    held = [value for value in vars(counts).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in held) < 1 << 20
    with pytest.raises(ConfigError, match=r"40,000 classes would have 1,600,000,000 fields; expected at most 2,000"):
        Counts(40_000, cpu, confusion=True)


def test_counts_of_a_checkpoint_are_added_those_of_the_first_version_too() -> None:
    logits_BC, labels_B = torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1])
    counts, first, second = (Counts(3, torch.device("cpu"), confusion=True) for _ in range(3))
    counts.add(logits_BC, labels_B, torch.ones(3), torch.ones(3))
    first.add_tensors(counts.tensors(Ranks()))
    second.add_tensors({"confusion": counts.confusion_CC, "sums": counts.sums})
    for found in (first, second):
        assert torch.equal(found.class_counts_2C, counts.class_counts_2C) and torch.equal(found.sums, counts.sums)
