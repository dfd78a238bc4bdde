"""Ten steps of training that must stay as they were before classification moved behind the objective seam.

The numbers were recorded with one process on a CPU, by the code before that move, at seed 3. The tolerance allows for another processor and
another version of torch.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets import ROOT
from tests.stem_adaptors.training.small_runs import fit, request_for
from tokenshards.pipeline.shards import open_dataset
from tokenshards.stem_adaptors.config import AugmentConfig

TOKENS = ROOT / "tests" / "data" / "golden" / "runs_v1" / "tokens"
TOLERANCE = 1e-4
STEP_LOSSES = [1.10065019, 1.12639344, 1.08310163, 1.12888074, 1.0735507, 1.07627487, 1.11799252, 1.07627308]
"""The losses of all steps but the last one of each epoch."""
EPOCHS = {
    "train_loss": [1.11123462, 1.0759264],
    "val_loss": [1.07573292, 1.06543481],
    "ema_val_loss": [1.07791085, 1.06629028],
    "train_top1": [0.275, 0.425],
    "val_top1": [0.425, 0.475],
}


def test_ten_steps_without_augmentation_are_those_of_the_golden_run(tmp_path: Path) -> None:
    data = open_dataset(str(TOKENS))
    request = request_for(
        data, tmp_path / "run", tmp_path / "cache", val=data, loader={"batch_size": 8}, epochs=2, augment=AugmentConfig.off()
    )
    said = fit(request)
    assert said.records[-1]["step"] == 10
    assert said.losses == pytest.approx(STEP_LOSSES, rel=TOLERANCE)
    for name, values in EPOCHS.items():
        assert [record[name] for record in said.records] == pytest.approx(values, rel=TOLERANCE), name
