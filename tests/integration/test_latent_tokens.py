"""A published encoder's weights to shards, and on to a classifier that predicts from images, as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.datasets import call_cli, call_json, content, image_size, run_cli, write_images
from tests.pipeline.tokenizers import taesd_reference

SIDE = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    for part in ("encoder", "decoder"):
        state = taesd_reference.random_state(part, pooled=part == "encoder")
        torch.save({key: value.half() for key, value in state.items()}, folder / f"{part}.pth")
    return {part: str(folder / f"{part}.pth") for part in ("encoder", "decoder")}


@pytest.fixture(scope="module")
def dataset(weights: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("latent")
    write_images(root / "photos", 30, side=SIDE)
    networks = ["--encoder", weights["encoder"], "--decoder", weights["decoder"]]
    fitted = call_json(
        "fit-tokenizer", str(root / "photos"), str(root / "tok"), "--kind", "latent-kmeans", *networks, "--size", "32", "--codes", "16"
    )
    assert fitted["images"] == 30 and fitted["latents"] == 480 and fitted["levels"][0]["codes"] == 16
    run_cli("tokenize", str(root / "photos"), str(root / "out"), "--tokenizer", str(root / "tok"), "--shard-rows", "8", "--workers", "2")
    return root


def test_workers_make_the_ids_of_this_process(dataset: Path) -> None:
    call_cli("tokenize", str(dataset / "photos"), str(dataset / "again"), "--tokenizer", str(dataset / "tok"), "--workers", "1")
    assert content(dataset / "out") == content(dataset / "again") and len(content(dataset / "out")) == 30
    assert "ok" in call_cli("verify", str(dataset / "out"))[0]


def test_the_whole_tokenizer_travels_with_the_shards(dataset: Path) -> None:
    names = {path.name for path in (dataset / "out" / "tokenizer").iterdir()}
    assert names == {"tokenizer.json", "codebook.safetensors", "weights.safetensors"}
    target = dataset / "out" / "tokenizer" / "weights.safetensors"
    whole = target.read_bytes()
    target.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert "tokenizer/weights.safetensors" in "".join(call_cli("verify", str(dataset / "out"), expect=1))
    finally:
        target.write_bytes(whole)


def test_it_is_shown_and_inspected(dataset: Path) -> None:
    call_cli("preview", str(dataset / "out"), "--to", str(dataset / "look.png"), "-n", "4", "--source", str(dataset / "photos"))
    assert image_size(dataset / "look.png")[0] > 4 * SIDE
    out, _ = call_cli("inspect", str(dataset / "out"))
    assert "latent-kmeans" in out and "latents" in out and "16 codes, 0 dead" in out


def test_a_classifier_predicts_from_images(dataset: Path) -> None:
    run = dataset / "run"
    model = [word for setting in ("model.width=16", "model.depth=1", "model.heads=2") for word in ("--set", setting)]
    call_cli("train", str(dataset / "out"), "--out", str(run), "--epochs", "1", "--batch-size", "16", "--device", "cpu", *model)
    shown, _ = call_cli("predict", str(run), str(dataset / "photos" / "class_0"), "--json")
    lines = [json.loads(line) for line in shown.splitlines()]
    assert len(lines) == 10 and all(line["classes"][0]["class"].startswith("class_") for line in lines)


def test_what_does_not_go_together_is_one_sentence(weights: dict[str, str], dataset: Path, tmp_path: Path) -> None:
    photos, out = str(dataset / "photos"), str(tmp_path / "tok")
    for words, expected in (
        (["--kind", "latent-kmeans"], "--encoder is missing"),
        (["--encoder", weights["encoder"]], "belongs to --kind latent-kmeans; --kind is patch-kmeans"),
        (["--kind", "vit"], "--kind is 'vit'; expected one of patch-kmeans, layered-kmeans, latent-kmeans, vq-autoencoder"),
        (["--mirrored"], "--mirrored is True, which belongs to --kind latent-kmeans"),
    ):
        _, err = call_cli("fit-tokenizer", photos, out, *words, expect=2)
        assert expected in err and len(err.splitlines()) == 1, err
    _, err = call_cli("fit-tokenizer", photos, out, "--kind", "latent-kmeans", "--encoder", f"{photos}/class_0/img_0000.jpg", expect=2)
    assert "are no state dict; expected safetensors or torch's format" in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "tok").exists()
