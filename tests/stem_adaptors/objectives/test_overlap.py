"""Counts of pixels and intersection over union, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.stem_adaptors.objectives.overlap import Overlap, OverlapCounts, counted_pixels
from tokenshards.stem_adaptors.ranks import Ranks


def slow_miou(best: np.ndarray, labels: np.ndarray, classes: int) -> tuple[list[float | None], float]:
    """IoU of each class and their mean by sets of pixels, without those that are ignored (-1)."""
    pairs = [(int(p), int(t)) for p, t in zip(best.ravel(), labels.ravel(), strict=True) if t >= 0]
    found: list[float | None] = []
    for number in range(classes):
        predicted = {place for place, (p, _) in enumerate(pairs) if p == number}
        true = {place for place, (_, t) in enumerate(pairs) if t == number}
        found.append(len(predicted & true) / len(predicted | true) if predicted | true else None)
    known = [value for value in found if value is not None]
    return found, sum(known) / len(known) if known else 0.0


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(1, 6), samples=st.integers(1, 6), side=st.integers(1, 7), seed=st.integers(0, 10**6), data=st.data())
def test_overlap_equals_sets_of_pixels(classes: int, samples: int, side: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.tile(np.arange(classes, dtype=np.float32)[:, None, None], (samples, 1, side, side)), axis=1)
    labels = rng.integers(-1, classes, (samples, side, side))
    weights = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=samples, max_size=samples)), np.float32)
    losses = rng.random(samples).astype(np.float32)
    counts = OverlapCounts(classes, torch.device("cpu"))
    for part in np.array_split(np.arange(samples), 2):
        if len(part):
            pixels_B3C = counted_pixels(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]))
            counts.add(pixels_B3C, torch.from_numpy(losses[part]), torch.from_numpy(weights[part]))
    resumed = OverlapCounts(classes, torch.device("cpu"))
    resumed.add_tensors(counts.tensors(Ranks()))
    found = resumed.gather(Ranks())
    real = weights > 0
    expected, mean = slow_miou(logits.argmax(1)[real], labels[real], classes)
    assert [None if np.isnan(value) else value for value in found.iou_C] == pytest.approx(expected)
    assert found.miou == pytest.approx(mean)
    known = labels[real] >= 0
    right = (logits.argmax(1)[real] == labels[real])[known]
    assert found.pixel_accuracy == pytest.approx(right.mean() if right.size else 0.0)
    assert found.images == real.sum() and found.loss == pytest.approx(losses[real].mean() if real.any() else 0.0, rel=1e-5)


def test_an_ignored_pixel_counts_for_no_class_also_where_one_is_predicted() -> None:
    logits = torch.tensor([[[[0.0, 0.0]], [[1.0, 1.0]]]])  # class 1 twice
    pixels_13C = counted_pixels(logits, torch.tensor([[[1, -1]]]))
    assert pixels_13C.tolist() == [[[0, 1], [0, 1], [0, 1]]]


def test_the_report_leaves_classes_without_pixels_open() -> None:
    found = Overlap(images=2, loss=0.5, pixels_3C=np.array([[6, 0, 0], [8, 2, 0], [7, 3, 0]]))
    report = found.to_json([0, 1, 2])
    assert report["miou"] == pytest.approx((6 / 9 + 0) / 2) and report["pixel_accuracy"] == pytest.approx(0.6)
    assert report["per_class"][2] == {"class": 2, "pixels": 0, "iou": None} and report["per_class"][1]["iou"] == 0
    assert repr(found) == "Overlap(miou=0.3333, pixel_accuracy=0.6, images=2, loss=0.5)"
    assert Overlap(images=0, loss=0.0, pixels_3C=np.zeros((3, 2), np.int64)).miou == 0
