"""What the first version left on disks goes on: its runs evaluate and resume, its half-done output completes (make_golden_runs.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from safetensors.numpy import load_file

from tests.datasets import call_cli, content
from tests.make_golden_runs import RUNS, STEP_OF_DEATH, tokenize_arguments, train_arguments, write_golden_images
from tokenshards.pipeline.shards import open_dataset

CLOCK = ("images_per_second", "data_wait_share")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Bits differ between CPUs; another random number would move a weight by a hundred times as much."""


def records(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in found]


@pytest.mark.parametrize("weights", ["best", "last"])
def test_a_run_of_the_first_version_evaluates(weights: str) -> None:
    out, _ = call_cli("evaluate", str(RUNS / "finished"), str(RUNS / "tokens"), "--weights", weights, "--device", "cpu", "--json")
    found, expected = json.loads(out), json.loads((RUNS / "evaluated.json").read_text())[weights]
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-5)
    assert found == expected


def test_a_run_of_the_first_version_resumes_between_two_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUNS / "interrupted", run)
    assert len(records(run)) == 1  # it died in its second epoch
    arguments = [word for word in train_arguments(RUNS / "tokens", run, tmp_path / "cache") if word != "-q"]
    _, said = call_cli(*arguments, "--resume")
    assert f"continuing at step {STEP_OF_DEATH} of 12" in said
    for found, expected in zip(records(run), records(RUNS / "finished"), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    ours, theirs = (load_file(place / "checkpoint.safetensors") for place in (run, RUNS / "finished"))
    compared = [name for name in theirs if name.startswith(("model/", "average/")) and not name.endswith("qkv.bias")]
    for name in compared:  # the bias of keys has no gradient but rounding, which Adam makes large
        np.testing.assert_allclose(ours[name], theirs[name], **CLOSE, err_msg=name)
    assert len(compared) > 60


def test_a_half_done_output_of_the_first_version_completes(tmp_path: Path) -> None:
    if PIL.__version__.split(".")[0] != "13":
        pytest.skip(f"it was begun with Pillow 13, which decodes alike; this is {PIL.__version__}, and mixing them is refused")
    images, out = tmp_path / "images", tmp_path / "out"
    write_golden_images(images)
    shutil.copytree(RUNS / "half_done", out)
    committed = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    assert len(committed) == 2 and not (out / "manifest.json").exists()
    arguments = [word for word in tokenize_arguments(images, out) if word != "-q"]
    _, said = call_cli(*arguments)
    assert "2 of 4 shards are done" in said
    assert content(out) == content(RUNS / "tokens")
    assert {name: (out / "shards" / name).read_bytes() for name in committed} == committed
    assert open_dataset(str(out)).spec.fingerprint == open_dataset(str(RUNS / "tokens")).spec.fingerprint
