"""The command line of the training side on real files: train, evaluate on shards and images, predict, and what it says when it cannot."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets import call_cli, call_json, image_size, run_cli, write_images
from tests.stem_adaptors.training.small_runs import tokenize_pair

SMALL = ["--set", "model.width=16", "--set", "model.depth=1", "--set", "model.heads=2", "--batch-size", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder with images and datasets, and a run trained on them."""
    folder = tmp_path_factory.mktemp("classifier")
    train, val = tokenize_pair(folder)
    options = ["--val", str(val), "--out", str(folder / "run"), "--epochs", "2", "--cache-dir", str(folder / "cache"), "--ema", "0.9"]
    out, errors = run_cli("train", str(train), *options, *SMALL)
    assert re.search(r"best top-1 \d+\.\d% after epoch [12]\. Look at .*curves\.png", out)
    assert len(re.findall(r"epoch +[12]/2 .*loss .*top-1 .*averaged .*images/s +data wait", errors)) == 2
    return folder, folder / "run"


def test_a_run_holds_all_that_is_needed(places: tuple[Path, Path], tmp_path: Path) -> None:
    folder, run = places
    names = {path.name for path in run.iterdir()}
    files = {"run.json", "tokenizer", "checkpoint.safetensors", "best.safetensors", "metrics.jsonl", "metrics.csv", "curves.png"}
    assert names >= files | {"tensorboard"}
    assert image_size(run / "curves.png") > (400, 200)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert (run / "metrics.csv").read_text().splitlines()[0].split(",") == list(lines[0])
    # The run classifies where neither the training set nor its place exists.
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    here = call_json("evaluate", str(run), str(folder / "val"))
    assert call_json("evaluate", str(moved), str(folder / "val")) == here


def test_evaluate_gives_the_same_from_shards_and_from_images(places: tuple[Path, Path], tmp_path: Path) -> None:
    folder, run = places
    from_shards = call_json("evaluate", str(run), str(folder / "val"))
    from_images = call_json("evaluate", str(run), "--images", str(folder / "val_images"))
    assert from_shards == from_images
    assert from_shards.keys() >= {"top1", "top5", "images", "per_class"}
    assert from_shards["images"] == 20 and [row["class"] for row in from_shards["per_class"]] == ["class_0", "class_1", "class_2"]
    assert sum(row["images"] * row["accuracy"] for row in from_shards["per_class"]) == pytest.approx(20 * from_shards["top1"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert from_shards["top1"] == max(max(record["val_top1"], record["ema_val_top1"]) for record in records)
    last = call_json("evaluate", str(run), str(folder / "val"), "--weights", "last", "--batch-size", "7")
    assert last["top1"] == records[-1]["val_top1"] and last["loss"] == pytest.approx(records[-1]["val_loss"], rel=1e-5)


def test_broken_and_unknown_images_are_left_out_and_counted(places: tuple[Path, Path], tmp_path: Path) -> None:
    folder, run = places
    shutil.copytree(folder / "val_images", tmp_path / "images")
    (tmp_path / "images" / "class_0" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    write_images(tmp_path / "more", 2, classes=1, seed=9)
    (tmp_path / "more" / "class_0").rename(tmp_path / "images" / "zebra")
    out, errors = call_cli("evaluate", str(run), "--images", str(tmp_path / "images"), "--confusion", str(tmp_path / "matrix.png"))
    assert "1 image cannot be read" in errors
    assert re.search(r"left out +2 images without a class that the run knows", out) and re.search(r"images +20\b", out)
    assert "confusion matrix drawn in" in out and image_size(tmp_path / "matrix.png") > (300, 300)


def test_predict_names_the_class_that_evaluate_counts(places: tuple[Path, Path], tmp_path: Path) -> None:
    folder, run = places
    report = call_json("evaluate", str(run), str(folder / "val"))
    out, _ = call_cli("predict", str(run), str(folder / "val_images"), "--top", "3", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 20 and all(len(line["classes"]) == 3 for line in lines)
    assert all(sum(entry["probability"] for entry in line["classes"]) == pytest.approx(1, abs=1e-5) for line in lines)
    right = [line["classes"][0]["class"] == Path(line["image"]).parent.name for line in lines]
    assert np.mean(right) == pytest.approx(report["top1"])
    one, _ = call_cli("predict", str(run), str(folder / "val_images" / "class_1" / "img_0001.png"))
    assert re.fullmatch(r"\S+img_0001\.png  class_\d \d+\.\d%\n", one)


def test_predict_goes_on_after_an_image_that_cannot_be_read(places: tuple[Path, Path], tmp_path: Path) -> None:
    folder, run = places
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    good = folder / "val_images" / "class_0" / "img_0000.jpg"
    out, errors = call_cli("predict", str(run), str(tmp_path / "broken.jpg"), str(tmp_path / "gone.png"), str(good), expect=1)
    assert out.count("\n") == 1 and "img_0000.jpg" in out
    assert re.search(r"error: \S+broken\.jpg: .+", errors) and re.search(r"error: \S+gone\.png: .+", errors)


def test_training_from_another_run_and_its_parts(places: tuple[Path, Path], tmp_path: Path) -> None:
    folder, run = places
    options = ["--val", str(folder / "val"), "--epochs", "1", "--cache-dir", str(folder / "cache"), *SMALL]
    probe = ["--pretrained", str(run), "--train-part", "head", "--no-augment", "--fraction", "0.5"]
    found = call_json("train", str(folder / "train"), "--out", str(tmp_path / "probe"), *options, *probe)
    assert found["run"] == str(tmp_path / "probe") and 0 <= found["best_top1"] <= 1 and found["epoch"] == 1
    mixed = call_json("train", str(folder / "train"), "--out", str(tmp_path / "mixed"), *options[2:], "--mix", f"{folder / 'val'}=0.5")
    assert mixed["step"] == (70 + 20) // 16  # an epoch has as many samples as both together


MISTAKES: list[tuple[list[str], int, str]] = [
    (["train", "{train}", "--out", "{run}"], 2, "--resume"),
    (["train", "{train}", "--out", "new", "--model", "vit_giant"], 2, "vit_nano"),
    (["train", "{train}", "--out", "new", "--set", "augment.noise=1"], 2, "noise_prob"),
    (["train", "{train}", "--out", "new", "--set", "augment.noise_prob=2"], 2, "0 to 1"),
    (["train", "{train}", "--out", "new", "--order", "sideways"], 2, "windowed"),
    (["train", "{train}", "--out", "new", "--cache-gb", "0.000001"], 2, "GB"),
    (["train", "{train}", "--out", "new", "--recipe", "none.py"], 2, "none.py"),
    (["train", "{train}", "--out", "new", "--mix", "{val}"], 2, "URL=WEIGHT"),
    (["train", "{train}", "--out", "new", "--pretrained", "none.safetensors"], 2, "none.safetensors"),
    (["train", "{train}", "--out", "new", "--val", "{train}/none"], 2, "no dataset here"),
    (["train", "{images}", "--out", "new"], 2, "no dataset here"),
    (["evaluate", "{run}"], 2, "exactly one"),
    (["evaluate", "{train}", "{val}"], 2, "no run here"),
    (["evaluate", "{run}", "{val}", "--weights", "worst"], 2, "best, last"),
    (["predict", "{run}", "{images}", "--top", "0"], 2, "at least 1"),
    (["predict", "{train}", "{images}"], 2, "no run here"),
    (["predict", "{run}", "{run}/tokenizer"], 2, "expected images or folders of images"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), MISTAKES, ids=[" ".join(words) for words, _, _ in MISTAKES])
def test_mistakes_are_one_message(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    folder, run = places
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENSHARDS_CACHE", str(tmp_path / "cache"))
    names: dict[str, Any] = {"train": folder / "train", "val": folder / "val", "images": folder / "val_images", "run": run}
    extra = ["-q", "--device", "cpu"] if arguments[0] == "train" else []
    out, errors = call_cli(*(word.format(**names) for word in arguments), *extra, expect=code)
    assert errors.startswith("error: ") and says in errors and out == ""
