"""Classes are matched by name, padding counts nowhere, and what is predicted is what is evaluated."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tests.stem_adaptors.augment.layouts import spec_of, tables_of
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards import Layout
from tokenshards.stem_adaptors.augment import TokenTransform
from tokenshards.stem_adaptors.commands.evaluation_report import SHOWN_CLASSES, EvaluationReport
from tokenshards.stem_adaptors.config import AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.class_names import class_map, relabelled
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, build_classifier
from tokenshards.stem_adaptors.objectives.accuracy import Accuracy
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.reporting.curves import confusion_png, curves_png
from tokenshards.stem_adaptors.training.evaluate import evaluate, predict

CPU = torch.device("cpu")
PNG = b"\x89PNG"
LAYOUTS = {
    "grid": Layout(kind="grid", grid=(8, 8), sites=64, ids_per_site=2, combine="sum"),
    "ragged grid": Layout(kind="grid", grid=(8, 6), sites=48, min_sites=4, variable=True),
    "ragged sequence": Layout(kind="sequence", sites=24, min_sites=2, variable=True),
}


def test_classes_are_matched_by_name_and_a_number_is_its_text() -> None:
    assert class_map(["b", 7], ["a", "b", "7"], "val", missing_is_error=True).tolist() == [1, 2, -1]
    assert class_map(["b", "x"], ["a", "b"], "val", missing_is_error=False).tolist() == [1, -1, -1]
    for strict, classes in ((True, ["b", "x"]), (False, ["x", "y"])):
        with pytest.raises(ConfigError, match="val: the classes .*x.* matched by name"):
            class_map(classes, ["a", "b"], "val", missing_is_error=strict)


def classifier(layout: Layout) -> TokenClassifier:
    torch.manual_seed(0)
    spec = spec_of(layout)
    return build_classifier(spec, tables_of(spec), None, ModelConfig(name="vit_nano", width=16, depth=1, heads=2), 7, None)


def rows_of(layout: Layout, count: int) -> TokenBatch:
    rng, levels = np.random.default_rng(0), layout.ids_per_site
    low = min(spec_of(layout).vocabulary)
    if not layout.variable:
        return TokenBatch(rng.integers(0, low, (count, layout.sites, levels)).astype(np.uint16))
    if layout.kind == "sequence":
        lengths = rng.integers(layout.min_sites, layout.sites + 1, count).astype(np.int32)
        return TokenBatch(rng.integers(0, low, (count, int(lengths.max()), levels)).astype(np.uint16), lengths)
    shapes = np.stack([rng.integers(2, side + 1, count) for side in layout.grid], axis=1).astype(np.int32)
    return TokenBatch(rng.integers(0, low, (count, int(shapes.prod(axis=1).max()), levels)).astype(np.uint16), None, shapes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_is_predicted_alike_alone_and_among_longer_ones(name: str) -> None:
    layout = LAYOUTS[name]
    model, rows = classifier(layout), rows_of(layout, 9)
    together = predict(model, rows, CPU)
    assert together.shape == (9, 7) and together.sum(axis=1) == pytest.approx(np.ones(9), abs=1e-5)
    for row in range(9):
        length = layout.sites
        if rows.lengths_B is not None:
            length = int(rows.lengths_B[row])
        elif rows.shapes_BD is not None:
            length = int(rows.shapes_BD[row].prod())
        part = slice(row, row + 1)
        shapes = None if rows.shapes_BD is None else rows.shapes_BD[part]
        one = TokenBatch(rows.ids_BLQ[part, :length], None if rows.lengths_B is None else rows.lengths_B[part], shapes)
        np.testing.assert_allclose(predict(model, one, CPU)[0], together[row], atol=1e-5)


def test_evaluation_counts_real_samples_of_known_classes_and_leaves_the_mode_alone() -> None:
    layout = LAYOUTS["grid"]
    model, rows = classifier(layout).train(), rows_of(layout, 12)
    probabilities = predict(model, rows, CPU)
    model.train()
    labels, weights = np.arange(12) % 5, np.array([1.0] * 10 + [0.0] * 2, np.float32)
    names = [f"c{index}" for index in range(7)]
    mapping = class_map(["c4", "c2", "none", "c0", "c1"], names, "val", missing_is_error=False)
    spec = spec_of(layout)
    objective = ClassifyObjective(model, TokenTransform(spec, tables_of(spec), AugmentConfig.off()), names)
    model.backbone.blocks[0].eval()  # type: ignore[operator, index, union-attr]
    batch = Batch(
        ids_BLQ=torch.from_numpy(rows.ids_BLQ),
        labels_B=torch.from_numpy(labels),
        weights_B=torch.from_numpy(weights),
        positions_B=torch.arange(12),
        rows_B=torch.arange(12),
        epoch=0,
        seed=0,
    )
    batches, align = [batch[:5], batch[5:]], functools.partial(relabelled, mapping)
    found = evaluate(objective, batches, align, torch.float32, objective.measure()).accuracy(Ranks())
    assert model.training and not model.backbone.blocks[0].training  # type: ignore[index, union-attr]
    expected = [(row, [4, 2, None, 0, 1][labels[row]]) for row in range(10)]
    counted = [(row, label) for row, label in expected if label is not None]
    assert found.images == len(counted) == 8
    assert found.top1 == pytest.approx(np.mean([probabilities[row].argmax() == label for row, label in counted]))
    assert found.top5 == pytest.approx(np.mean([label in probabilities[row].argsort()[-5:] for row, label in counted]))
    assert found.loss == pytest.approx(-np.mean([np.log(probabilities[row, label]) for row, label in counted]), rel=1e-4)


@pytest.mark.parametrize("classes", [2, 12, 60])
def test_reports_of_few_and_many_classes(classes: int) -> None:
    confusion = np.eye(classes, dtype=np.int64) * 3
    confusion[-1, 0] = 5
    names = [f"class {index}" for index in range(classes)]
    images = int(confusion.sum())
    counts = np.stack([confusion.sum(1), np.diag(confusion)])
    accuracy = Accuracy(images=images, loss=0.5, top5_hits=images - 1, class_counts_2C=counts, confusion_CC=confusion)
    report = EvaluationReport(accuracy, names, left_out=4)
    (_, summary), (title, per_class) = report.tables()
    assert dict(summary)["images"] == f"{images:,}" and dict(summary)["left out"].startswith("4 images")
    assert per_class[0] == (names[-1], "37.5% of 8") and len(per_class) == min(classes, SHOWN_CLASSES)
    assert title == ("per class, the worst first" if classes <= SHOWN_CLASSES else f"the {SHOWN_CLASSES} worst of {classes} classes")
    assert report.to_json()["left_out"] == 4 and report.confusion_png().startswith(PNG)


def test_images_and_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"epoch": epoch, "train_loss": 1 / (epoch + 1), "train_top1": 0.5, "val_top1": 0.4, "val_loss": 1.0} for epoch in range(40)]
    assert curves_png(records).startswith(PNG) and curves_png(records[:1]).startswith(PNG)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"needs matplotlib.*\[plot\]"):
        confusion_png(np.eye(2, dtype=np.int64), ["a", "b"])
