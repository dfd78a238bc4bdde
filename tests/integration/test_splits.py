"""`--splits` and `--split`: one dataset per split with one tokenizer and one class table, and a folder that is none itself."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.datasets import call_cli, run_cli, write_images
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.split_index import SPLIT_INDEX

SMALL = ("--size", "16", "--codes", "16", "--workers", "1")


@pytest.fixture(scope="module")
def split_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("splits") / "src"
    for split, count in (("train", 24), ("val", 6)):
        write_images(root / "all" / split, count)
    return root / "all"


def test_a_dataset_per_split(split_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped = call_cli("tokenize", str(split_source), str(out), *SMALL, expect=2)[1]
    assert "2 splits, train (24), val (6)" in stopped and "--splits makes a dataset of each" in stopped and "--yes" in stopped
    assert not (out / "plan").exists() and not (out / "tokenizer").exists()
    whole = json.loads(call_cli("tokenize", str(split_source), str(out), *SMALL, "--splits", "--json")[0])
    assert {name: found["images_committed"] for name, found in whole["splits"].items()} == {"train": 24, "val": 6}
    assert whole["splits"]["val"]["understood"]["splits"] == {"val": 6}
    train, val = open_dataset(str(out / "train")), open_dataset(str(out / "val"))
    assert train.manifest.fingerprint == val.manifest.fingerprint and train.manifest.classes == val.manifest.classes
    assert len(val) == 6 and val[0].row["sample_id"].startswith("val/")
    for command in (["status"], ["verify"], ["repair"], ["quarantine"], ["inspect"], ["retry-failed"], ["tokenize", str(split_source)]):
        told = call_cli(*command, str(out), expect=2)[1]
        assert f"{out}/train, {out}/val" in told, command
    for command in (["publish", str(out), str(tmp_path / "copy")], ["train", str(out), "--out", str(tmp_path / "run")]):
        assert f"{out}/train, {out}/val" in call_cli(*command, expect=2)[1], command
    with pytest.raises(ConfigError, match="holds one dataset per split and is none itself; expected one of .*/train, .*/val"):
        open_dataset(str(out))
    (out / "val" / "manifest.json").unlink()
    run_cli("tokenize", str(split_source), str(out), *SMALL, "--splits")
    assert (out / "val" / "manifest.json").exists()
    assert json.loads((out / SPLIT_INDEX).read_text())["splits"] == ["train", "val"]


def test_a_class_that_only_a_later_split_has_is_said_by_plan_and_tokenize(split_source: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    shutil.copytree(split_source, src)
    next((src / "val").iterdir()).rename(src / "val" / "emu")
    for command in ("plan", "tokenize"):
        said = call_cli(command, str(src), str(tmp_path / "out"), "--size", "16", "--codes", "16", "--workers", "1", "--splits")[1]
        assert said.count("the class 'emu' (") == 1 and "is not in the class table of the training set" in said


def test_one_split_of_a_source_is_a_dataset_and_continues_without_the_option(split_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_cli("tokenize", str(split_source), str(out), *SMALL, "--split", "val")
    said = call_cli("tokenize", str(split_source), str(out))[0]
    assert "already complete" in said and f"another OUT, with --tokenizer {out}" in said
    assert "2 splits" in call_cli("plan", str(split_source), str(out))[1], "an output that has a plan is never stopped by a doubt"
    told = call_cli("tokenize", str(split_source), str(out), "--split", "train", expect=2)[1]
    assert "--split train (the plan has val)" in told
    told = call_cli("tokenize", str(split_source), str(out), "--splits", expect=2)[1]
    assert "is a dataset; expected an OUT of its own for --splits" in told


def test_what_splits_refuses(split_source: Path, tmp_path: Path) -> None:
    src, out = str(split_source), str(tmp_path / "out")
    assert "one of them" in call_cli("tokenize", src, out, "--splits", "--split", "val", expect=2)[1]
    assert "seen: none" in call_cli("tokenize", f"{src}/train", out, "--splits", expect=2)[1]
    shown = json.loads(call_cli("plan", src, out, "--splits", "--json", "--workers", "1")[0])
    assert {name: found["images"] for name, found in shown["splits"].items()} == {"train": 24, "val": 6}
    grave = json.loads(call_cli("plan", src, out, "--json", expect=2)[0])
    assert [doubt["grave"] for doubt in grave["understood"]["doubts"]] == [True]
    assert not Path(out).exists() or not list(Path(out).iterdir())


def test_inputs_of_no_split_are_not_left_out_without_a_word(split_source: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    for split in ("train", "val"):
        (src / split).symlink_to(split_source / split)
    write_images(src / "extra", 3)
    told = call_cli("tokenize", str(src), str(tmp_path / "out"), *SMALL, "--splits", expect=2)[1]
    assert "3 images are of no split" in told and "--yes" in told


def labels_of(out: Path) -> dict[str, object]:
    dataset = open_dataset(str(out))
    return {sample.row["sample_id"]: sample.label for sample in dataset}


def test_a_table_of_labels_counts_for_the_splits_whose_images_it_names(split_source: Path, tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    images = sorted((split_source / "train").rglob("*.*"))
    for n, image in enumerate(images[:20]):  # as Tiny ImageNet is distributed
        place = (f"train/n{n % 2}/images", "val/images", "test/images")[0 if n < 12 else 1 if n < 16 else 2]
        (src / place).mkdir(parents=True, exist_ok=True)
        (src / place / f"{n}.png").write_bytes(image.read_bytes())
    (src / "val" / "val_annotations.txt").write_text("".join(f"{n}.png\tn{n % 2}\t0\t9\t9\t9\n" for n in range(12, 16)))
    command = ("tokenize", str(src), str(out), *SMALL, "--splits", "--label-from", "file:val/val_annotations.txt")
    said = call_cli(*command)[1]
    assert "names no image of the split train, which is labelled as without it" in said
    assert "all images of the split test lie in one folder 'images', which is no class of another split: they get no label" in said
    assert labels_of(out / "train") == {f"train/n{n % 2}/images/{n}.png": f"n{n % 2}" for n in range(12)}
    assert labels_of(out / "val") == {f"val/images/{n}.png": f"n{n % 2}" for n in range(12, 16)}
    assert labels_of(out / "test") == {f"test/images/{n}.png": None for n in range(16, 20)}
    for lost in ("manifest.json", "manifest.copy.json"):
        (out / "val" / lost).unlink(missing_ok=True)
    run_cli(*command)  # the splits that have a plan continue by it
    assert (out / "val" / "manifest.json").exists()
    told = call_cli(*command[:-1], "file:other.csv", expect=2)[1]
    assert "already holds a plan made with other options: --label-from file:other.csv" in told


def test_tars_without_images_are_of_no_split_and_do_not_stop_splits(split_source: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    for split in ("train", "val"):
        with tarfile.open(src / f"img_{split}.tar", "w") as archive:
            for image in sorted((split_source / split).rglob("*.*"))[:6]:
                archive.add(image, image.name)
    with tarfile.open(src / "devkit.tar.gz", "w:gz") as archive:
        archive.add(Path(__file__), "devkit/readme.txt")
    shown = json.loads(call_cli("plan", str(src), str(tmp_path / "out"), "--splits", "--json", "--workers", "1")[0])
    assert {name: found["images"] for name, found in shown["splits"].items()} == {"train": 6, "val": 6}
