"""Options of `train` that decide on the data and the rates, by what the run directory says afterwards."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import tokenshards
from tests.datasets import call_cli
from tests.stem_adaptors.training.small_runs import tokenize_pair
from tokenshards import cli
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.objectives import accuracy
from tokenshards.stem_adaptors.training.defaults import default_configs as defaults
from tokenshards.stem_adaptors.training.defaults import training_data, with_given
from tokenshards.stem_adaptors.training.metrics_log import MetricsLog
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


def test_epochs_count_from_one_wherever_a_person_reads_them(pair: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["train", str(pair[0]), "--val", str(pair[1]), "--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache"), *SMALL]
    report = json.loads(call_cli(*words, "--epochs", "2", "--json")[0])
    assert report["epoch"] == 2 and report["best_epoch"] in (1, 2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert [line.split(",")[0] for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()] == ["epoch", "1", "2"]
    out, _ = call_cli(*(word for word in words if word != "-q"), "--epochs", "2", "--resume")
    assert f"after epoch {report['best_epoch']}. Look at" in out


def test_a_log_that_counted_from_zero_is_continued_from_one() -> None:
    log, shift = MetricsLog.counted_from_one([{"epoch": 0, "step": 4}, {"epoch": 1, "step": 8}])
    assert shift == 1 and [record["epoch"] for record in log.records] == [1, 2]
    same, none = MetricsLog.counted_from_one(log.records)
    assert none == 0 and same.records == log.records and MetricsLog.counted_from_one([])[1] == 0


def test_a_run_gets_more_epochs_by_resuming_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    common = {"device": "cpu", "cache_dir": tmp_path / "cache", "batch_size": 16, "set": {"model.width": 8, "model.depth": 1}}
    options: dict[str, Any] = {**common, "val": pair[1], "resume": True}
    tokenshards.train(pair[0], tmp_path / "run", epochs=2, **options)
    longer = tokenshards.train(pair[0], tmp_path / "run", epochs=3, **options)
    assert "3 epochs in place of 2: from here on the learning rate is that of a run of 3 epochs" in longer.said
    assert [record["epoch"] for record in longer.records] == [3] and load_run(Store(str(tmp_path / "run"))).train.epochs == 3
    with pytest.raises(ConfigError, match="train.epochs is 2; this run was started with 3"):
        tokenshards.train(pair[0], tmp_path / "run", epochs=2, **options)
    assert tokenshards.train(pair[0], tmp_path / "run", epochs=3, **options).record == longer.record
    place = "tokenshards.stem_adaptors.training.defaults.default_configs"
    with patch(place, lambda data: with_given(defaults(data), {"train": {"epochs": 1}})):
        again = tokenshards.train(pair[0], tmp_path / "run", **options)
    assert "the run has 3 epochs" in again.said and again.record == longer.record


def test_the_averaged_weights_are_measured(pair: tuple[Path, Path], tmp_path: Path) -> None:
    common = {"device": "cpu", "cache_dir": tmp_path / "cache", "batch_size": 16, "set": {"model.width": 8, "model.depth": 1}}
    report = tokenshards.train(pair[0], tmp_path / "run", val=pair[1], epochs=2, ema=0.9, **common)
    found = json.loads(call_cli("evaluate", str(tmp_path / "run"), str(pair[1]), "--device=cpu", "--weights=ema", "--json")[0])
    assert found["top1"] == pytest.approx(report.record["ema_val_top1"]) and found["loss"] == pytest.approx(report.record["ema_val_loss"])
    trained(pair[0], tmp_path / "without")
    _, error = call_cli("evaluate", str(tmp_path / "without"), str(pair[1]), "--device=cpu", "--weights=ema", expect=2)
    assert "keeps no averaged weights. Train with --ema" in error


def test_weights_of_other_shapes_are_named_with_both(pair: tuple[Path, Path], tmp_path: Path) -> None:
    trained(pair[0], tmp_path / "run")
    words = [
        "train",
        str(pair[0]),
        "--cache-dir",
        str(tmp_path / "cache"),
        "--pretrained",
        str(tmp_path / "run"),
        "--device=cpu",
        "--epochs=1",
    ]
    other = ["--set", "model.width=12", "--set", "model.depth=1", "--set", "model.heads=2"]
    _, error = call_cli(*words, "--out", str(tmp_path / "other"), *other, expect=2)
    assert "none of its" in error and "cls_token is [1, 1, 8] in the file, [1, 1, 12] in the model" in error
    _, said = call_cli(*words, "--out", str(tmp_path / "stem"), *SMALL[2:-1], "--set", "model.stem=patch")
    assert re.search(r"left fresh: patch_embed.proj.weight \(\[8, \d+, 3, 3\] in the file, \[8, \d+, 1, 1\] in the model\)", said), said


def test_a_validation_set_in_the_mix_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    common: dict[str, Any] = {"device": "cpu", "cache_dir": tmp_path / "cache", "epochs": 1, "set": {"model.width": 8, "model.depth": 1}}
    shutil.copytree(pair[1], tmp_path / "copy")  # a copy is the same set
    with pytest.raises(ConfigError, match="copy is in the training mix and is the validation set too"):
        tokenshards.train(pair[0], tmp_path / "run", val=tmp_path / "copy", mix={str(pair[1]): 0.5}, **common)
    assert not (tmp_path / "run").exists()
    report = tokenshards.train(pair[0], tmp_path / "run", val=pair[0], **common)
    assert any("is the training set, so the accuracy is that of images that were learned from" in line for line in report.said)


def test_a_share_of_the_data_trains_the_model_of_the_whole(pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole = open_dataset(str(pair[0]))
    with patch("tokenshards.stem_adaptors.training.defaults._MODELS", ((60, "vit_nano"), (1000, "vit_micro"))):
        for fraction, batch_size in ((1.0, 16), (0.5, 16), (0.1, 4)):
            configs = defaults(training_data(str(pair[0]), fraction=fraction))
            assert configs["model"].name == "vit_micro" and configs["loader"].batch_size == batch_size
            assert configs["train"] == defaults(whole)["train"] and configs["augment"] == defaults(whole)["augment"]
    common: dict[str, Any] = {"device": "cpu", "cache_dir": tmp_path / "cache", "epochs": 1, "set": {"model.width": 8, "model.depth": 1}}
    said = tokenshards.train(pair[0], tmp_path / "tenth", fraction=0.1, **common).said
    assert any(re.match("note: the batch size is 4, because . images do not fill one of 16", line) for line in said), said
    said = tokenshards.train(pair[0], tmp_path / "half", fraction=0.5, **common).said
    assert not any("batch size" in line for line in said)
