"""`export classifier`: timm itself loads what is written, by the code that is printed, and computes what the run computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.datasets import call_cli, call_json, write_images
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards import open_dataset, tokenize, train
from tokenshards.stem_adaptors.training.run_directory import open_classifier, open_objective

allow_torchvision()
SMALL = {"model.width": 32, "model.depth": 2, "model.heads": 2}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_images(folder / "images", 24)
    tokenize(folder / "images", folder / "tokens", size=32, codes=16, workers=1)
    return folder / "tokens"


def run_of(tokens: Path, run: Path, **settings: Any) -> str:
    model = settings.pop("model", None)
    train(tokens, run, epochs=1, batch_size=8, device="cpu", model=model, set={**({} if model else SMALL), **settings})
    return str(run)


def loaded(code: str) -> Any:
    names: dict[str, Any] = {}
    exec(code, names)
    return names["model"].eval()


@pytest.mark.parametrize("stem", ["auto", "patch"])
def test_timm_classifies_embeddings_as_the_run_does(tokens: Path, tmp_path: Path, stem: str) -> None:
    run, file = run_of(tokens, tmp_path / "run", **{"model.stem": stem}), tmp_path / "own.safetensors"
    found = call_json("export", "classifier", run, str(file))
    assert found["fresh"] == found["unused"] == [] and found["model"] == "vit_base_patch16_224"
    classifier, about = open_classifier(run)
    with torch.no_grad():
        x = classifier.embed(torch.from_numpy(open_dataset(str(tokens))[:5].ids_BLQ))
        torch.testing.assert_close(loaded(found["code"])(x), classifier.classify(x), rtol=1e-4, atol=1e-5)
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["classes"]) == list(about.classes)


def test_an_encoder_of_images_has_fresh_patches_and_resized_positions(tokens: Path, tmp_path: Path) -> None:
    run, file = run_of(tokens, tmp_path / "run"), str(tmp_path / "images.safetensors")
    out, _ = call_cli("export", "classifier", run, file, "--image-size", "40", "--patch", "8")
    assert "fresh in timm's model: patch_embed.proj.bias, patch_embed.proj.weight\n" in out
    assert "of the run, without a place in timm's model: patch_embed.proj.bias, patch_embed.proj.weight\n" in out
    model, own = loaded(out.partition("load them with:\n\n")[2]), open_classifier(run)[0].backbone.state_dict()
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(("patch_embed.", "pos_embed"))}
    assert len(kept) == len(own) - 3 and all(torch.equal(tensor, own[name]) for name, tensor in kept.items())
    grid = torch.nn.functional.interpolate(
        own["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, (8, 8)), (5, 5), mode="bicubic", antialias=True, align_corners=False
    )
    torch.testing.assert_close(model.state_dict()["pos_embed"][0, 1:], grid[0].flatten(1).T)
    assert model(torch.zeros(2, 3, 40, 40)).shape == (2, 3)


@pytest.mark.parametrize(("name", "first"), [("timm:resnet10t", "conv1.0."), ("timm:vit_tiny_patch16_224", "patch_embed.proj.")])
def test_a_model_of_timm_becomes_one_of_images(tokens: Path, tmp_path: Path, name: str, first: str) -> None:
    run, file = run_of(tokens, tmp_path / "run", model=name), str(tmp_path / "images.safetensors")
    found = call_json("export", "classifier", run, file, "--image-size", "96")
    assert found["fresh"] and all(tensor.startswith(first) for tensor in found["fresh"])
    model, own = loaded(found["code"]), open_classifier(run)[0].backbone.state_dict()
    kept = [name for name in model.state_dict() if not name.startswith((first, "pos_embed"))]
    assert all(torch.equal(model.state_dict()[name], own[name]) for name in kept)
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 3)
    told = call_cli("export", "classifier", run, file, "--image-size", "96", "--patch", "8", expect=2)[1]
    assert told == f"error: --patch is 8; {name} has a patch of its own. Leave --patch out\n"
    if "vit" in name:
        told = call_cli("export", "classifier", run, file, "--image-size", "8", expect=2)[1]
        assert told == f"error: --image-size is 8, less than a patch of {name}; give a larger one\n"
    told = call_cli("export", "classifier", run, file, expect=2)[1]
    assert told == f"error: the stem for tokens of {name} is none of timm's; expected --image-size N, for an encoder of images\n"


def test_an_encoder_that_learned_without_labels_has_no_head(tokens: Path, tmp_path: Path) -> None:
    call_cli(
        *("pretrain", str(tokens), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "8", "--device", "cpu"),
        *(part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")),
    )
    found = call_json(
        "export", "classifier", str(tmp_path / "run"), str(tmp_path / "encoder.safetensors"), "--image-size", "32", "--patch", "4"
    )
    model, backbone = loaded(found["code"]), open_objective_backbone(tmp_path / "run")
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in model.blocks.state_dict(prefix="blocks.").items())
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 32), "features"


def open_objective_backbone(run: Path) -> dict[str, torch.Tensor]:
    from tokenshards.pipeline.storage.store import Store

    model: Any = open_objective(Store(str(run)))[0].model
    state: dict[str, torch.Tensor] = model.backbone.state_dict()
    return state


@pytest.mark.parametrize(
    ("settings", "given", "says"),
    [
        ({}, ["--patch", "8"], "--patch is 8 without --image-size; expected both, or none for a model of tokens"),
        ({}, ["--image-size", "20", "--patch", "8"], "--patch is 8, --image-size 20; expected a patch that divides the image"),
        ({"model.embed_norm": True}, [], "the stem norms every site, which no ViT of timm does; expected --image-size N"),
    ],
)
def test_what_timm_cannot_hold_is_one_sentence(tokens: Path, tmp_path: Path, settings: Any, given: list[str], says: str) -> None:
    run = run_of(tokens, tmp_path / "run", **settings)
    told = call_cli("export", "classifier", run, str(tmp_path / "own.safetensors"), *given, expect=2)[1]
    assert told.startswith(f"error: {says}") and len(told.splitlines()) == 1
    told = call_cli("export", "classifier", run, str(tmp_path / "own.pt"), expect=2)[1]
    assert "own.pt'; expected a name that ends in .safetensors" in told
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
