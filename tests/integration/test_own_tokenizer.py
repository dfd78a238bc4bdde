"""A network trained on one's own images becomes a tokenizer, then shards, then a classifier; killed in between, it continues."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.datasets import call_cli, call_json, content, start_cli, write_images
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.optional_packages import install_hint

SMALL = ("--kind", "vq-autoencoder", "--width", "8", "--depth", "1", "--codes", "16", "--batch", "8", "--size", "32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("own") / "photos"
    write_images(root, 48, side=32, bad=2)
    return str(root)


def test_images_to_a_classifier(photos: str, tmp_path: Path) -> None:
    shown, err = call_cli("fit-tokenizer", photos, str(tmp_path / "tok"), *SMALL, "--epochs", "2")
    assert "epoch 2 of 2: PSNR" in err and "vq-autoencoder, 32 px, 8×8 grid, 16 + 16 codes" in shown
    call_cli("tokenize", photos, str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tok"), "--shard-rows", "8", "--max-bad", "0.5")
    assert len(content(tmp_path / "out")) == 48
    model = [word for setting in ("model.width=16", "model.depth=1", "model.heads=2") for word in ("--set", setting)]
    call_cli(
        "train", str(tmp_path / "out"), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "16", "--device", "cpu", *model
    )
    predicted, _ = call_cli("predict", str(tmp_path / "run"), f"{photos}/class_2", "--json")
    assert all(json.loads(line)["classes"] for line in predicted.splitlines())


def test_killed_it_continues_to_the_same_tokenizer(photos: str, tmp_path: Path) -> None:
    whole = call_json("fit-tokenizer", photos, str(tmp_path / "whole"), *SMALL, "--epochs", "4", "--json")
    state = tmp_path / "killed" / "training.state"
    process = start_cli("fit-tokenizer", photos, str(tmp_path / "killed"), *SMALL, "--epochs", "4")
    deadline = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert state.exists(), "it was killed too late to tell"
    _, err = call_cli("fit-tokenizer", photos, str(tmp_path / "killed"), *SMALL, "--epochs", "5", expect=2)
    assert "stopped here after" in err and "delete that file to start over" in err
    continued = call_json("fit-tokenizer", photos, str(tmp_path / "killed"), *SMALL, "--epochs", "4", "--json")
    assert continued == whole and not state.exists()


def test_options_of_other_kinds_are_one_sentence(photos: str, tmp_path: Path) -> None:
    out = str(tmp_path / "tok")
    for words, expected in (
        (["--epochs", "3"], "--epochs is 3, which belongs to --kind vq-autoencoder; --kind is patch-kmeans"),
        ([*SMALL, "--beam", "2"], "--beam is 2, which belongs to --kind patch-kmeans"),
        ([*SMALL, "--quantizer", "fsq"], "--codes is 16; expected one of 256"),
        ([*SMALL, "--perceptual", "vgg11"], "expected both or none"),
        (["--kind", "vqvae"], "--kind is 'vqvae'; expected one of patch-kmeans, layered-kmeans, latent-kmeans, vq-autoencoder"),
    ):
        _, err = call_cli("fit-tokenizer", photos, out, *words, expect=2)
        assert expected in err and len(err.splitlines()) == 1, err
    assert not Path(out).exists()


def test_without_the_library_it_says_what_to_install(photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    _, err = call_cli("fit-tokenizer", photos, str(tmp_path / "tok"), *SMALL, expect=2)
    assert install_hint("fit") in err and len(err.strip().splitlines()[-1:]) == 1


def test_a_perceptual_loss_of_a_timm_model(photos: str, tmp_path: Path) -> None:
    if allow_torchvision() is None:
        pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")
    import torch

    torch.save(timm.create_model("vgg11", pretrained=False).state_dict(), tmp_path / "vgg11.pth")
    torch.save({"one": torch.zeros(1)}, tmp_path / "other.pth")
    network = (*SMALL, "--epochs", "1", "--perceptual", "vgg11", "--sample", "12")
    found = {}
    for weight in ("0.1", "10"):
        words = ("--perceptual-weights", str(tmp_path / "vgg11.pth"), "--perceptual-weight", weight, "--json")
        found[weight] = json.loads(call_cli("fit-tokenizer", photos, str(tmp_path / weight), *network, *words)[0])["fingerprint"]
    assert found["0.1"] != found["10"]
    for words, expected in (
        (("--perceptual-weights", str(tmp_path / "other.pth")), "features_0.weight of vgg11 is missing"),
        (("--perceptual-weights", str(tmp_path / "none.pth")), "no file is here"),
    ):
        _, err = call_cli("fit-tokenizer", photos, str(tmp_path / "no"), *network, *words, expect=2)
        assert expected in err, err
