"""Weights of another project become a run that evaluates as they do; what does not fit is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.datasets import call_cli, convert, write_images
from tests.stem_adaptors.training.small_runs import FIT, fit, request_for, tokenize_pair
from tests.stem_adaptors.training.test_pretrained import save, seit_state
from tokenshards.pipeline.errors import ConfigError, OtherTokenizerError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.config import AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.models.classifier import VisionTransformer
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding
from tokenshards.stem_adaptors.models.stems import ConvStem
from tokenshards.stem_adaptors.training.checkpoints import write_weights
from tokenshards.stem_adaptors.training.imported_classifier import Imported, import_classifier
from tokenshards.stem_adaptors.training.run_directory import BEST, CHECKPOINT, open_classifier


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 4 x 4 sites: of these the centre crop leaves 4 x 4 too."""
    return tokenize_pair(tmp_path_factory.mktemp("pair"))[0]


def foreign_vit(tokens: Path, classes: int = 3) -> VisionTransformer:
    torch.manual_seed(4)
    channels = TokenEmbedding(open_dataset(str(tokens)).spec, open_dataset(str(tokens)).codebook()).channels
    vit = VisionTransformer(ConvStem(channels, 64, (4, 4), (1, 1), overlap=True), classes=classes, width=64, depth=4, heads=4)
    torch.nn.init.normal_(vit.fc_norm.bias)
    return vit.eval()


def test_a_vit_named_as_seits_evaluates_as_it_does_itself(tokens: Path, tmp_path: Path) -> None:
    vit, dataset = foreign_vit(tokens), open_dataset(str(tokens))
    path = save(tmp_path / "trained-vit.ckpt", {"model": seit_state(vit), "epoch": 299})
    out, _ = call_cli("import", "classifier", path, str(tokens), str(tmp_path / "run"))
    assert "left fresh" in out and " 0 left fresh" in out and "norm.* taken as fc_norm.*" in out
    batch = next(iter(dataset.batches(len(dataset))))
    with torch.inference_mode():
        x_BDHW = TokenEmbedding(dataset.spec, dataset.codebook())(torch.from_numpy(batch.ids_BLQ.astype(np.int64)))
        logits_BC = vit(x_BDHW)  # its code vectors are as they are stored
    labels_B = torch.from_numpy(batch.labels_B.astype(np.int64))
    found = json.loads(call_cli("evaluate", str(tmp_path / "run"), str(tokens), "--device", "cpu", "--json")[0])
    assert found["top1"] == pytest.approx(float((logits_BC.argmax(1) == labels_B).float().mean()))
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits_BC, labels_B)), rel=1e-4)
    _, refused = call_cli("train", str(tokens), "--out", str(tmp_path / "run"), "--resume", "--device", "cpu", expect=2)
    assert "holds imported weights and no training to continue" in refused


def test_weights_that_do_not_fit_are_named_and_nothing_is_written(tokens: Path, tmp_path: Path) -> None:
    dataset, out = open_dataset(str(tokens)), Store(str(tmp_path / "run"))
    thousand = save(tmp_path / "thousand.pt", seit_state(foreign_vit(tokens, classes=1000)))
    with pytest.raises(ConfigError, match=r"head.weight has shape \(1000, 64\), the model \(3, 64\)"):
        import_classifier(thousand, dataset, out)
    state = seit_state(foreign_vit(tokens))
    del state["blocks.1.attn.qkv.bias"]
    with pytest.raises(ConfigError, match=r"1 of the \d+ weights do not fit .*blocks.1.attn.qkv.bias is missing"):
        import_classifier(save(tmp_path / "part.pt", state), dataset, out)
    with pytest.raises(ConfigError, match="not named as those of a ViT"):
        import_classifier(save(tmp_path / "cnn.pt", {"conv1.weight": torch.zeros(3, 3)}), dataset, out)
    assert list(out.list()) == []


class Trained(NamedTuple):
    """A run of our own, and the logits [N, C] of its best weights."""

    url: str
    state: dict[str, torch.Tensor]
    logits: torch.Tensor


def logits_of(run: str | Path, tokens: Path) -> torch.Tensor:
    dataset = open_dataset(str(tokens))
    model, _ = open_classifier(Store(str(run)))
    with torch.inference_mode():
        return model(torch.from_numpy(next(iter(dataset.batches(len(dataset)))).ids_BLQ.astype(np.int64)))


@pytest.fixture(scope="module", params=["standardised", "raw", "learned"])
def trained(request: pytest.FixtureRequest, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    how: dict[str, Any] = {"raw": {"raw_embeddings": True}, "learned": {"learned_codebook": True}}.get(request.param, {})
    model = ModelConfig(name="vit_nano", depth=1, **how)
    changes: dict[str, Any] = {"epochs": 1, "ema_decay": 0.0, "lr": 1e-2, "augment": AugmentConfig.off()}
    fit(request_for(open_dataset(str(tokens)), folder / "run", folder / "cache", model=model, **changes))
    own, _ = open_classifier(Store(str(folder / "run")))
    return Trained(str(folder / "run"), own.state_dict(), logits_of(folder / "run", tokens))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.model.", "student.net."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_our_own_weights_answer_as_their_run(trained: Trained, tokens: Path, tmp_path: Path, prefix: str, suffix: str) -> None:
    """A file with the code vectors tells whether they are standardised; of learned ones `--set` says so."""
    path = save(tmp_path / f"own{suffix}", {f"{prefix}{name}": tensor for name, tensor in trained.state.items()})
    learned = ("model.learned_codebook=true",) if "learned" in trained.url else ()
    made = import_classifier(path, open_dataset(str(tokens)), Store(str(tmp_path / "run")), settings=learned)
    torch.testing.assert_close(logits_of(tmp_path / "run", tokens), trained.logits)
    assert ("as the code vectors in the file are" in made.notes[-1]) == (not learned) and "4 heads" in made.notes[0]
    if learned:
        with pytest.raises(ConfigError, match=r"neither those of the codebook .*--set model.learned_codebook=true"):
            import_classifier(path, open_dataset(str(tokens)), Store(str(tmp_path / "other")))


def test_a_run_directory_and_its_files_answer_as_the_run(trained: Trained, tokens: Path, tmp_path: Path) -> None:
    made = import_classifier(trained.url, open_dataset(str(tokens)), Store(str(tmp_path / "run")))
    torch.testing.assert_close(logits_of(tmp_path / "run", tokens), trained.logits)
    assert made.run.model.name == "vit_nano" and len(made.notes) == 1
    learned = ("model.learned_codebook=true",) if "learned" in trained.url else ()
    for file in ("best", "checkpoint"):
        import_classifier(f"{trained.url}/{file}.safetensors", open_dataset(str(tokens)), Store(str(tmp_path / file)), settings=learned)
        torch.testing.assert_close(logits_of(tmp_path / file, tokens), trained.logits)


def test_a_run_keeps_its_classes_and_needs_its_tokenizer(trained: Trained, tokens: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3, classes=1, seed=8)
    convert(tmp_path / "images", tmp_path / "one", tokenizer=str(tokens / "tokenizer"))
    assert open_dataset(str(tmp_path / "one")).classes == ("class_0",)
    made = import_classifier(trained.url, open_dataset(str(tmp_path / "one")), Store(str(tmp_path / "run")))
    assert made.run.classes == open_dataset(str(tokens)).classes
    torch.testing.assert_close(logits_of(tmp_path / "run", tokens), trained.logits)
    convert(tmp_path / "images", tmp_path / "foreign", fit=FIT)
    with pytest.raises(OtherTokenizerError, match="Tokenize the images with --tokenizer .*run/tokenizer"):
        import_classifier(trained.url, open_dataset(str(tmp_path / "foreign")), Store(str(tmp_path / "other")))


def test_a_backbone_alone_takes_raw_embeddings_and_says_how_to_change_that(trained: Trained, tokens: Path, tmp_path: Path) -> None:
    backbone = {name.removeprefix("backbone."): tensor for name, tensor in trained.state.items() if name.startswith("backbone.")}
    path = save(tmp_path / "backbone.pt", backbone)
    out, _ = call_cli("import", "classifier", path, str(tokens), str(tmp_path / "run"))
    assert "embeddings: the code vectors as stored" in out and "add --set model.raw_embeddings=false" in out
    setting = ("--set", f"model.raw_embeddings={str('raw' in trained.url).lower()}")
    out, _ = call_cli("import", "classifier", path, str(tokens), str(tmp_path / "other"), *setting)
    assert "as --set says" in out
    if "learned" not in trained.url:
        torch.testing.assert_close(logits_of(tmp_path / "other", tokens), trained.logits)


def imported(path: str, tokens: Path, out: Path) -> Imported:
    return import_classifier(path, open_dataset(str(tokens)), Store(str(out)))


def test_statistics_of_another_dataset_are_found_in_the_code_vectors(trained: Trained, tokens: Path, tmp_path: Path) -> None:
    """Where the tokenizer has no statistics, each dataset of it standardises by its own."""
    if "learned" in trained.url:
        pytest.skip("learned code vectors are not standardised")
    state = dict(trained.state)
    first = [name for name in state if name.startswith("embedding.")]
    width = state[first[0]].shape[1]
    mean, scale = torch.linspace(-1, 1, width), torch.linspace(0.5, 2, width)
    for number, name in enumerate(first):
        state[name] = (state[name] - (mean if number == 0 else 0)) / scale
    imported(save(tmp_path / "shifted.pt", state), tokens, tmp_path / "run")
    model, _ = open_classifier(Store(str(tmp_path / "run")))
    for name in first:
        torch.testing.assert_close(model.state_dict()[name], state[name], rtol=1e-3, atol=1e-4)


def test_weights_of_another_codebook_or_two_models_are_refused(trained: Trained, tokens: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = {name: torch.randn_like(tensor) if name.startswith("embedding.") else tensor for name, tensor in trained.state.items()}
    with pytest.raises(ConfigError, match="neither those of the codebook of .* nor these standardised"):
        imported(save(tmp_path / "other.pt", other), tokens, tmp_path / "run")
    twice = {f"{owner}.{name}": tensor for owner in ("teacher", "student") for name, tensor in trained.state.items()}
    with pytest.raises(ConfigError, match=r"holds 2 models, as (student|teacher)\..*Save one of them"):
        imported(save(tmp_path / "twice.pt", twice), tokens, tmp_path / "run")
    assert list(Store(str(tmp_path / "run")).list()) == []


def test_weights_that_are_not_finite_are_refused_wherever_they_are_read(trained: Trained, tokens: Path, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in trained.state.items()}
    state["backbone.head.bias"][1] = float("nan")
    path = save(tmp_path / "nan.safetensors", state)
    with pytest.raises(ConfigError, match=r"nan.safetensors: 1 of the \d+ weights hold .* not finite: head.bias \(1 of 3\)"):
        settings = ("model.learned_codebook=true",) if "learned" in trained.url else ()
        import_classifier(path, open_dataset(str(tokens)), Store(str(tmp_path / "run")), settings=settings)
    _, refused = call_cli("train", str(tokens), "--out", str(tmp_path / "new"), "--pretrained", path, "--device", "cpu", expect=2)
    assert "head.bias (1 of 3)" in refused
    shutil.copytree(trained.url, tmp_path / "broken")
    broken = Store(str(tmp_path / "broken"))
    write_weights(broken, BEST, state, {})
    write_weights(broken, CHECKPOINT, {f"model/{name}": tensor for name, tensor in state.items()}, {})
    for command, data, *how in (("evaluate", tokens), ("evaluate", tokens, "--weights", "last"), ("predict", tokens.parent / "val_images")):
        _, refused = call_cli(command, broken.url, str(data), *how, "--device", "cpu", expect=2)
        assert "backbone.head.bias (1 of 3)" in refused
