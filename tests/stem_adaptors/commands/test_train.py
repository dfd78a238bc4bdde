"""Options of `train` that decide on the data and the rates, by what the run directory says afterwards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tests.datasets import call_cli
from tests.stem_adaptors.training.small_runs import tokenize_pair
from tokenshards import cli
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.objectives import accuracy
from tokenshards.stem_adaptors.training.run_directory import Run, load_run

SMALL = ["--epochs", "1", "--set", "model.width=8", "--set", "model.depth=1", "--set", "model.heads=2", "--device", "cpu", "-q"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tokenize_pair(tmp_path_factory.mktemp("pair"))


def trained(tokens: Path, run: Path, *options: str) -> Run:
    call_cli("train", str(tokens), "--out", str(run), "--cache-dir", str(run.parent / "cache"), *SMALL, *options)
    return load_run(Store(str(run)))


def test_the_seed_leaves_the_share_of_the_data_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    half = ["--fraction", "0.5"]
    first = trained(pair[0], tmp_path / "0", *half)
    other = trained(pair[0], tmp_path / "1", *half, "--seed", "1")
    redrawn = trained(pair[0], tmp_path / "2", *half, "--fraction-seed", "1")
    assert other.train.seed == other.loader.seed == 1
    assert first.data["subset"] == other.data["subset"] != redrawn.data["subset"]


def test_the_rate_goes_by_the_data_and_not_by_the_batch(pair: tuple[Path, Path], tmp_path: Path) -> None:
    rates = {trained(pair[0], tmp_path / size, "--batch-size", size).train.lr for size in ("8", "32")}
    assert len(rates) == 1
    words = " ".join(call_cli("train", "--help")[0].replace("│", " ").split())
    assert "by the batch size" not in words and "whatever the batch size" in words


def test_too_little_memory_for_tensors_is_a_sentence() -> None:
    with patch.object(cli, "app", lambda: torch.empty(1 << 50, dtype=torch.uint8)):
        _, errors = call_cli("train", expect=3)
    assert "out of memory" in errors and "bug" not in errors and len(errors.splitlines()) == 1


def test_an_evaluation_counts_the_confusion_matrix_only_if_asked(pair: tuple[Path, Path], tmp_path: Path) -> None:
    trained(pair[0], tmp_path / "run")
    report = json.loads(call_cli("evaluate", str(tmp_path / "run"), str(pair[1]), "--device", "cpu", "--json")[0])
    drawn = tmp_path / "matrix.png"
    with_matrix = call_cli("evaluate", str(tmp_path / "run"), str(pair[1]), "--device", "cpu", "--json", "--confusion", str(drawn))[0]
    assert json.loads(with_matrix) == report and report["images"] == 20
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_a_matrix_that_cannot_be_drawn_is_refused_before_images_are_tokenized(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(pair[0], tmp_path / "run")
    command = ["evaluate", str(tmp_path / "run"), "--images", "no-such-folder", "--confusion", str(tmp_path / "matrix.png")]
    with monkeypatch.context() as patched:
        patched.setattr(accuracy, "CONFUSION_CLASSES", 2)
        assert "3 classes would have 9 fields; expected at most 2" in call_cli(*command, expect=2)[1]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "needs matplotlib, which cannot be imported" in call_cli(*command, expect=2)[1]
