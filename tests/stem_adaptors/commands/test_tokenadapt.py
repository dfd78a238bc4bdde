"""`fit-tokenadapt`, and what uses its result: `train --tokenadapt`, a resume without the original, `evaluate`, `preview`, `import`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.datasets import ROOT, call_cli, call_json
from tests.stem_adaptors.training.small_runs import Stopped, death_after, request_for, tokenize_pair
from tests.stem_adaptors.training.small_runs import fit as small_fit
from tokenshards.pipeline.shards.dataset import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import load_tokenizer
from tokenshards.stem_adaptors.augment.adapt_file import load_adapter, read_about
from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter
from tokenshards.stem_adaptors.augment.adapt_published import published_names
from tokenshards.stem_adaptors.augment.adapt_sizes import AdaptSizes
from tokenshards.stem_adaptors.config import AugmentConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.reporting.fidelity_table import fidelity_warning
from tokenshards.stem_adaptors.training.adapt_copy import absolute_files
from tokenshards.stem_adaptors.training.checkpoints import read_checkpoint
from tokenshards.stem_adaptors.training.run_directory import load_run, open_objective

QUICK = ("--width", "16", "--heads", "1", "--batch", "16", "--epochs", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, their tokens, and a TokenAdapt fitted to them."""
    folder = tmp_path_factory.mktemp("adapt")
    tokenize_pair(folder)
    fit(folder, folder / "adapt")
    return folder


def fit(folder: Path, out: Path, *options: str) -> tuple[str, str]:
    images, tokens = str(folder / "train_images"), str(folder / "train")
    return call_cli("fit-tokenadapt", images, "--tokenizer", tokens, "--out", str(out), *QUICK, *options)


def train(folder: Path, run: Path, *options: str, expect: int = 0) -> tuple[str, str]:
    small = ("--set", "model.depth=1", "--set", "model.width=16", "--set", "model.heads=2", "--set", "model.stem_patch=1")
    sizes = ("--model", "vit_nano", "--epochs", "1", "--batch-size", "16", "--cache-dir", str(folder / "cache"))
    return call_cli("train", str(folder / "train"), "--out", str(run), *sizes, *small, *options, expect=expect)


def test_a_fit_says_what_it_understood_and_how_faithful_it_is(folder: Path, tmp_path: Path) -> None:
    out, said = fit(folder, tmp_path / "one")
    assert "images     66 to fit on, 4 held out" in said and "patch-kmeans, 32 px, 4×4 grid" in said
    assert "networks   width 16, 1 head, (4, 4) sites become (4, 4)" in said
    assert "2 epochs of 4 steps of 16" in said and "132 images to encode" in said and "epoch 2 of 2: loss" in said
    for words in ("mirror: TokenAdapt", "rotation by 15°: ids moved to the nearest site", "random crop: nothing done", "whole sites"):
        assert words in out
    about = read_about(Store(str(tmp_path / "one")))
    assert about.settings["images"] == 66 and about.settings["epochs"] == 2 and len(about.settings["reports"]) == 2
    assert 0 < about.fidelity["flip"]["nothing"]["ids"] < 1
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["tokenadapt.json", "weights.safetensors"]
    images = ("fit-tokenadapt", str(folder / "train_images"), "--tokenizer", str(folder / "train"))
    found = call_json(*images, "--out", str(tmp_path / "two"), *QUICK)
    assert found["fidelity"] == about.fidelity and found["fingerprint"] == about.fingerprint
    assert read_about(Store(str(tmp_path / "two"))).sha256 == about.sha256, "the same images, the same bytes"


def test_nothing_is_written_over(folder: Path, tmp_path: Path) -> None:
    """A fitted TokenAdapt and a dataset stay as they are."""
    before = (folder / "adapt" / "tokenadapt.json").read_bytes()
    for out, what in (("adapt", "a fitted TokenAdapt"), ("train", "a dataset")):
        with pytest.raises(AssertionError, match=f"{out} holds {what}; expected an empty place for the TokenAdapt"):
            fit(folder, folder / out, "--seed", "7")
    assert (folder / "adapt" / "tokenadapt.json").read_bytes() == before


def test_a_fit_that_is_no_better_than_moving_ids_says_so() -> None:
    ways = {"token_adapt": 0.5, "direct_sites": 0.4, "direct_codes": 0.6, "nothing": 0.1}
    shares = {way: {"ids": share, "levels": [share], "sites": share} for way, share in ways.items()}
    better = {**shares, "token_adapt": {**shares["token_adapt"], "ids": 0.7}}
    said = fidelity_warning({"flip": shares, "crop": better})
    assert said is not None and "directly after: mirror (50.0% against 60.0%)." in said and "crop" not in said
    assert fidelity_warning({"flip": better}) is None and fidelity_warning({}) is None


def test_a_killed_fit_ends_in_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    fault = f"point=after-adapt-step,log={tmp_path / 'log'},skip=5"
    command = [sys.executable, str(ROOT / "cli.py"), "fit-tokenadapt", str(folder / "train_images"), "--tokenizer", str(folder / "train")]
    command += ["--out", str(tmp_path / "adapt"), *QUICK]
    killed = subprocess.run(command, env={**os.environ, "TOKENSHARDS_FAULT": fault}, capture_output=True, timeout=100)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (tmp_path / "adapt").iterdir()] == ["fit.checkpoint.safetensors"]
    with pytest.raises(AssertionError, match="a fit with other options, images or another tokenizer stopped here after 1 epoch"):
        fit(folder, tmp_path / "adapt", "--seed", "5")
    _, said = fit(folder, tmp_path / "adapt")
    assert "epoch 2 of 2" in said and "epoch 1 of 2" not in said
    for name in ("tokenadapt.json", "weights.safetensors"):
        assert (tmp_path / "adapt" / name).read_bytes() == (folder / "adapt" / name).read_bytes()


def test_a_run_keeps_its_own_copy(folder: Path, tmp_path: Path) -> None:
    """The original may go, but not change."""
    original, run = tmp_path / "photos.adapt", tmp_path / "run"
    shutil.copytree(folder / "adapt", original)
    train(folder, run, "--augment", "seitpp", "--tokenadapt", str(original))
    recorded = load_run(str(run))
    sha256 = read_about(Store(str(original))).sha256
    assert (
        f"half_batch([rrc(share=0.875, scale_min=0.08, ratio_max=1.3333333333333333)], [token_adapt(file='tokenadapt', sha256='{sha256}')])"
        in (recorded.augment.ops)
    )
    assert (run / "tokenadapt" / "weights.safetensors").read_bytes() == (original / "weights.safetensors").read_bytes()
    again = ("--augment", "seitpp", "--tokenadapt", str(original), "--resume", "--epochs", "2")
    shutil.rmtree(original)
    fit(folder, original, "--seed", "7")
    _, said = train(folder, run, *again, expect=2)
    assert "--resume: the fitted TokenAdapt in" in said and f"this run was started with {sha256[:12]}" in said
    shutil.rmtree(original)
    _, said = train(folder, run, *again)
    assert "is not there; the run goes on with its copy" in said and "epoch   2/2" in said
    shutil.rmtree(run / "tokenadapt")
    assert 0 <= call_json("evaluate", str(run), str(folder / "val"))["top1"] <= 1, "measuring needs neither copy nor original"


def test_a_pretraining_takes_it_too(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "masked"
    small = ("--set", "model.depth=1", "--set", "model.width=16", "--set", "model.heads=2", "--set", "mask.decoder_depth=1")
    sizes = ("--model", "vit_nano", "--epochs", "1", "--batch-size", "16", "--cache-dir", str(folder / "cache"))
    arguments = ("pretrain", str(folder / "train"), "--val", str(folder / "val"), "--out", str(run), *sizes, *small)
    call_cli(*arguments, "--tokenadapt", str(folder / "adapt"))
    assert "quantise()], [token_adapt(file='tokenadapt', scale_min=0.2, sha256=" in load_run(str(run)).augment.ops
    shutil.rmtree(run / "tokenadapt")
    objective, _ = open_objective(Store(str(run)))
    batch = next(iter(TokenLoader(open_dataset(str(folder / "val")), batch_size=8)))
    assert objective.answers(batch).loss_B.isfinite().all(), "measuring needs no copy"


def test_a_killed_run_goes_on_in_the_same_bits_without_the_original(folder: Path, tmp_path: Path) -> None:
    dataset, original = open_dataset(str(folder / "train")), tmp_path / "photos.adapt"
    shutil.copytree(folder / "adapt", original)
    augment = AugmentConfig(ops=f"half_batch([rrc()], [token_adapt(file='{original}')]), 0.5*noise(), cutmix()")
    parts = {"augment": augment, "epochs": 2, "checkpoint_steps": 1}
    small_fit(request_for(dataset, tmp_path / "whole", folder / "cache", **parts))
    with death_after(6), pytest.raises(Stopped):
        small_fit(request_for(dataset, tmp_path / "parts", folder / "cache", **parts))
    shutil.rmtree(original)
    small_fit(request_for(dataset, tmp_path / "parts", folder / "cache", resume=True, **parts))
    whole, again = (read_checkpoint(Store(str(tmp_path / name)), "checkpoint.safetensors").model for name in ("whole", "parts"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_job_for_a_cluster_has_absolute_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = AugmentConfig(ops="half_batch([rrc()], [token_adapt(file='photos.adapt', degrees=10)])", mix_group=4)
    found = absolute_files(config, os.path.abspath)
    assert found == AugmentConfig(ops=f"half_batch([rrc()], [token_adapt(file='{tmp_path / 'photos.adapt'}', degrees=10)])", mix_group=4)
    assert absolute_files(AugmentConfig(ops="rrc()"), os.path.abspath) == AugmentConfig(ops="rrc()")


def test_what_does_not_fit_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    _, said = train(folder, tmp_path / "run", "--tokenadapt", str(tmp_path / "nothing"), expect=2)
    assert "no fitted TokenAdapt is in" in said and not (tmp_path / "run" / "run.json").exists()
    _, said = train(folder, tmp_path / "run", "--augment", "none", "--tokenadapt", str(folder / "adapt"), expect=2)
    assert "--tokenadapt takes the place of the crop" in said
    shutil.copytree(folder / "adapt", tmp_path / "other")
    both = f"half_batch([token_adapt(file='{tmp_path / 'other'}')], [token_adapt(file='{folder / 'adapt'}')])"
    _, said = train(folder, tmp_path / "run", "--augment", both, expect=2)
    assert "names 2 fitted TokenAdapts" in said


def test_a_preview_draws_both_halves(folder: Path, tmp_path: Path) -> None:
    ops = f"half_batch([rrc()], [token_adapt(file='{folder / 'adapt'}')]), cutmix()"
    arguments = ("preview", str(folder / "train"), "--to", str(tmp_path / "look.png"), "--augment", "-n", "4")
    out, _ = call_cli(*arguments, "--set", f"augment.ops={ops}")
    with Image.open(tmp_path / "look.png") as image:
        wide = image.width
    call_cli(*arguments, "--set", "augment.ops=rrc(), cutmix()")
    with Image.open(tmp_path / "look.png") as image:
        assert wide > image.width, "a column for either half"


def test_published_weights_are_imported(folder: Path, tmp_path: Path) -> None:
    """A file with the names and shapes of the published one, made here: no real one is at hand."""
    spec = load_tokenizer(Store(str(folder / "train")), "tokenizer").spec
    _, said = call_cli(
        "import", "tokenadapt", str(tmp_path / "none.ckpt"), "--tokenizer", str(folder / "train"), "--out", str(tmp_path / "a"), expect=2
    )
    assert "none.ckpt" in said
    one_level = tmp_path / "one.tok"
    call_cli(
        "fit-tokenizer", str(folder / "train_images"), str(one_level), "--size", "32", "--patch", "8", "--levels", "1", "--codes", "16"
    )
    tokenizer = load_tokenizer(Store(str(one_level)))
    adapter = TokenAdapter(tokenizer.spec, tokenizer.codebook(), AdaptSizes(out_grid=(3, 3), width=16, heads=2, hidden=64))
    names = published_names(adapter)
    state = {names[name]: tensor[None] if "positions" in name else tensor for name, tensor in adapter.state_dict().items()}
    torch.save(state, tmp_path / "tokenadapt.ckpt")
    arguments = ("import", "tokenadapt", str(tmp_path / "tokenadapt.ckpt"), "--out", str(tmp_path / "seit.adapt"), "--tokenizer")
    found = call_json(*arguments, str(one_level))
    assert found["tensors"] == 36 and found["out_grid"] == [3, 3]
    loaded, about = load_adapter(Store(str(tmp_path / "seit.adapt")), "", tokenizer.spec, tokenizer.codebook())
    assert about.fidelity == {} and about.settings["imported"].endswith("tokenadapt.ckpt")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in adapter.state_dict().items())
    _, said = call_cli(*arguments, str(one_level), expect=2)
    assert "seit.adapt holds a fitted TokenAdapt; expected an empty place" in said
    arguments = (*arguments[:3], "--out", str(tmp_path / "other.adapt"), "--tokenizer")
    _, said = call_cli(*arguments, str(folder / "train"), expect=2)
    assert f"one id per site; the tokenizer has {len(spec.vocabulary)}" in said
