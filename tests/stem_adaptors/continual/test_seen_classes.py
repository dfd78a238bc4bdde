"""Only the classes that have come take part: in the loss, in its gradients and in the answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline.shards.test_dataset import build
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.stem_adaptors.augment.targets import soft_targets
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig, LoaderConfig, ModelConfig
from tokenshards.stem_adaptors.continual.seen_classes import features_of, limit_to
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.selection import Selection
from tokenshards.stem_adaptors.objectives.base import Blueprint
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective

SMOOTHING, CLASSES, SEEN = 0.1, 5, 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    root = tmp_path_factory.mktemp("seen")
    build(root, [30])
    return open_dataset(str(root))


@pytest.fixture
def objective(dataset: TokenDataset) -> ClassifyObjective:
    augment = AugmentConfig(synonym_prob=0.0, swap_prob=0.0, crop_share=1.0, noise_prob=0.0, cutmix_prob=0.0, flip_prob=0.0)
    blueprint = Blueprint(
        spec=dataset.spec,
        tables=dataset.codebook(),
        statistics=None,
        classes=tuple(map(str, range(CLASSES))),
        model=ModelConfig(name="vit_nano", width=16, depth=1, heads=2),
        augment=augment,
        label_smoothing=SMOOTHING,
        draws=DRAWS,
    )
    return ClassifyObjective.build(blueprint)


@pytest.fixture
def batch(dataset: TokenDataset, tmp_path: Path) -> Batch:
    found = next(iter(TokenLoader(dataset, LoaderConfig(batch_size=12, cache_dir=str(tmp_path)))))
    return replace(found, labels_B=torch.arange(12) % SEEN)


def test_the_loss_is_that_of_a_softmax_over_seen_classes(objective: ClassifyObjective, batch: Batch) -> None:
    """Slow reference: logits of unseen classes are minus infinity, and the smoothed targets share 1 among the seen classes."""
    torch.manual_seed(0)
    torch.nn.init.normal_(objective.model.backbone.head.weight)  # type: ignore[union-attr, arg-type]
    x, _, mask = objective.transform(objective.model, batch)
    logits_BC = objective.model.classify(x, mask).detach()
    assert logits_BC.shape == (12, CLASSES)
    expected = []
    for row in range(12):
        masked = [float(logits_BC[row, c]) if c < SEEN else -float("inf") for c in range(CLASSES)]
        whole = sum(np.exp(value) for value in masked)
        targets = [(1 - SMOOTHING) * (c == int(batch.labels_B[row])) + SMOOTHING / SEEN for c in range(SEEN)]
        expected.append(-sum(target * np.log(np.exp(masked[c]) / whole) for c, target in enumerate(targets)))
    limit_to(objective, SEEN)
    answers = objective(batch)
    np.testing.assert_allclose(answers.loss_B.detach().numpy(), expected, rtol=1e-4)
    assert answers.outputs.shape == (12, SEEN)
    np.testing.assert_allclose(soft_targets(batch.labels_B, SEEN, SMOOTHING)[0].numpy(), [1 - SMOOTHING / 2, SMOOTHING / 2], rtol=1e-5)


def test_unseen_classes_get_no_gradient_and_are_never_answered(objective: ClassifyObjective, batch: Batch) -> None:
    head = objective.model.backbone.head
    head.bias.data[SEEN:] = 100.0  # type: ignore[union-attr, index]
    assert (objective.model(batch.ids_BLQ).argmax(dim=1) >= SEEN).all()
    limit_to(objective, SEEN)
    assert (objective.model(batch.ids_BLQ).argmax(dim=1) < SEEN).all()
    objective(batch).loss_B.sum().backward()
    assert head.weight.grad[:SEEN].abs().sum() > 0 and head.weight.grad[SEEN:].abs().sum() == 0  # type: ignore[union-attr, index]
    measure = objective.measure()
    measure.add(batch, objective.answers(batch))


def test_features_are_what_the_head_reads_of_each_row(objective: ClassifyObjective, dataset: TokenDataset) -> None:
    rows_n = np.array([2, 3, 11, 29])
    selection = Selection(dataset=dataset, rows_n=rows_n, classes=dataset.classes)
    objective.eval()
    found_ND = features_of(objective.model, selection, torch.device("cpu"))
    head = objective.model.backbone.head
    logits_NC = objective.model(torch.from_numpy(dataset[:].ids_BLQ[rows_n])).detach().numpy()
    np.testing.assert_allclose(found_ND @ head.weight.detach().numpy().T + head.bias.detach().numpy(), logits_NC, rtol=1e-3, atol=1e-5)  # type: ignore[union-attr]
    assert not head._forward_pre_hooks, "nothing is left behind"  # type: ignore[union-attr]
