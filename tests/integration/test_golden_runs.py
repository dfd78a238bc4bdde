"""What the first version left on disks goes on: its runs evaluate and resume, its half-done output completes (make_golden_runs.py)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from safetensors.numpy import load_file

from tests import make_golden_inputs, make_golden_masks
from tests.datasets import call_cli, content
from tests.make_golden_runs import RUNS, STEP_OF_DEATH, tokenize_arguments, train_arguments, write_golden_images
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.manifest import load_manifest, read_sealed
from tokenshards.pipeline.storage.store import Store

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
    assert found.pop("precision") == "fp32"
    assert found == expected


def test_a_run_of_the_first_version_resumes_between_two_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUNS / "interrupted", run)
    assert len(records(run)) == 1  # it died in its second epoch
    arguments = [word for word in train_arguments(RUNS / "tokens", run, tmp_path / "cache") if word != "-q"]
    _, said = call_cli(*arguments, "--resume")
    assert f"continuing at step {STEP_OF_DEATH} of 12" in said
    for found, expected in zip(records(run), records(RUNS / "finished"), strict=True):
        assert found == pytest.approx({**expected, "epoch": expected["epoch"] + 1}, rel=1e-4)  # the first version counted from 0
    ours, theirs = (load_file(place / "checkpoint.safetensors") for place in (run, RUNS / "finished"))
    compared = [name for name in theirs if name.startswith(("model/", "average/")) and not name.endswith("qkv.bias")]
    for name in compared:  # the bias of keys has no gradient but rounding, which Adam makes large
        np.testing.assert_allclose(ours[name], theirs[name], **CLOSE, err_msg=name)
    assert len(compared) > 60


needs_pillow_13 = pytest.mark.skipif(
    PIL.__version__.split(".")[0] != "13", reason=f"begun with Pillow 13, which decodes alike; {PIL.__version__} must not be mixed with it"
)


@needs_pillow_13
def test_a_half_done_output_of_the_first_version_completes(tmp_path: Path) -> None:
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
    assert {read_sealed(Store(str(out)), name)["format_version"] for name in json_objects(out)} == {"1.0"}


@needs_pillow_13
def test_a_half_done_output_of_version_1_1_completes(tmp_path: Path) -> None:
    """Its plan says which rules its rows are read by; of its table some rows have no image, in a committed shard and in an open one."""
    folder, out = make_golden_inputs.FOLDER, tmp_path / "out"
    source = make_golden_inputs.table_at(tmp_path / "table").parent
    shutil.copytree(folder / "half_done", out)
    committed = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    arguments = [word for word in make_golden_inputs.tokenize_arguments(source, out) if word != "-q"]
    _, said = call_cli(*arguments)
    assert "3 of 4 shards are done" in said
    assert content(out) == content(folder / "tokens") and len(content(out)) == 35
    assert {name: (out / "shards" / name).read_bytes() for name in committed} == committed
    store = Store(str(out))
    found, expected = load_manifest(store), load_manifest(Store(str(folder / "tokens")))
    clock = {"seconds": {}}
    assert found.totals | clock == expected.totals | clock and found.untaken.absent == len(make_golden_inputs.ABSENT) == 5
    assert found.plan_ids == expected.plan_ids and verify_dataset(store).ok
    assert Counter(read_sealed(store, name)["format_version"] for name in json_objects(out) if "commits" in name) == {"1.0": 2, "1.1": 2}


@needs_pillow_13
def test_a_half_done_output_of_version_1_3_completes(tmp_path: Path) -> None:
    """Its plan says in which column the masks are, and how they are stored."""
    folder, out = make_golden_masks.FOLDER, tmp_path / "out"
    source = make_golden_masks.table_at(tmp_path / "table").parent
    shutil.copytree(folder / "half_done", out)
    committed = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    _, said = call_cli("tokenize", str(source), str(out), "--workers", "1")
    assert "2 of 4 shards are done" in said
    assert content(out) == content(folder / "tokens") and len(content(out)) == make_golden_masks.IMAGES
    assert {name: (out / "shards" / name).read_bytes() for name in committed} == committed
    store = Store(str(out))
    found, expected = load_manifest(store), load_manifest(Store(str(folder / "tokens")))
    assert found.plan_ids == expected.plan_ids and found.mask == expected.mask and verify_dataset(store).ok
    assert found.mask is not None and found.mask.images == make_golden_masks.IMAGES - len(make_golden_masks.UNMASKED)
    for row in open_dataset(str(out)):
        number = int(row.sample_id.rpartition("#")[2])
        if number in make_golden_masks.UNMASKED:
            assert row.mask_HW is None
        else:
            np.testing.assert_array_equal(row.mask_HW, make_golden_masks.table_mask(number))


def json_objects(out: Path) -> list[str]:
    """Return the sealed objects of a dataset, without the records of runs."""
    return [path.relative_to(out).as_posix() for path in out.rglob("*.json") if "runs" not in path.parts]
