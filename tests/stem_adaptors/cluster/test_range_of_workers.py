"""A range of workers may become any number of them, which must not end the training for its mix groups."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stem_adaptors.training.small_runs import KeptReporter
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.training.training_job import TrainingJob

pytest.importorskip("ray", reason="Ray (an extra) is not installed")

from tokenshards.stem_adaptors.cluster.cluster_config import ClusterConfig  # noqa: E402
from tokenshards.stem_adaptors.cluster.ray_train import _for_any_number_of_workers  # noqa: E402


def job(augment: AugmentConfig) -> TrainingJob:
    parts: dict[str, Any] = {"model": ModelConfig(), "loader": LoaderConfig(), "train": TrainConfig()}
    return TrainingJob(data_url="data", val_url=None, out_url="run", augment=augment, **parts)


@pytest.mark.parametrize(
    ("workers", "augment", "expected"),
    [
        ((2, 8), AugmentConfig(), 0),
        ((4, 4), AugmentConfig(), None),
        ((2, 8), AugmentConfig(mix_group=16), 16),
        ((2, 8), AugmentConfig.off(), None),
    ],
)
def test_only_a_range_without_a_given_size_mixes_what_each_worker_has(
    workers: tuple[int, int], augment: AugmentConfig, expected: int | None
) -> None:
    reporter = KeptReporter()
    assert _for_any_number_of_workers(job(augment), ClusterConfig(workers=workers), reporter).augment.mix_group == expected
    assert [line.startswith("note: with 2 to 8 workers, CutMix") for line in reporter.lines] == ([True] if expected == 0 else [])
