"""Training with as many classes as ImageNet-21k has: nothing in it may be classes x classes large."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.datasets import ROOT


def test_training_with_21841_classes_takes_less_than_a_gigabyte_beside_the_model() -> None:
    script = str(ROOT / "infra" / "bench" / "many_classes.py")
    done = subprocess.run(
        [sys.executable, script, "--rows", "22000", "--batch", "256", "--steps", "2"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["classes"], found["val_images"]) == (21_841, 2_000)
    assert found["ratio"] < 1, found
