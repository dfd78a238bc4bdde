"""A run directory carries what is needed to classify elsewhere; what is wrong with one is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.datasets import convert, write_images
from tests.stem_adaptors.training.small_runs import FIT, fit, request_for, tokenize_pair
from tokenshards.pipeline.canonical import seal
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, FormatVersionError, MissingObjectError, OtherTokenizerError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.commands.evaluation_report import evaluate_run
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.training.run_directory import load_run, open_classifier

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, val and run."""
    folder = tmp_path_factory.mktemp("run")
    train, val = tokenize_pair(folder)
    request = request_for(open_dataset(str(train)), folder / "run", folder / "cache", val=open_dataset(str(val)), epochs=2)
    fit(request)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def test_what_is_loaded_is_what_was_trained(trained: Path) -> None:
    store = Store(str(trained / "run"))
    found = load_run(store)
    assert found.classes == ("class_0", "class_1", "class_2") and found.train.epochs == 2
    assert json.loads(json.dumps(found.to_json())) == {**found.to_json()}
    model, _ = open_classifier(store, "last")
    assert not model.training
    for place in (trained / "run", str(trained / "run")):
        assert load_run(place) == open_classifier(place)[1] == found
    kept = load_file(trained / "run" / "checkpoint.safetensors")
    assert all(torch.equal(value, kept[f"model/{name}"]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "change", "error", "says"),
    [
        ("run.json", b"{}", CorruptObjectError, "run.json"),
        ("run.json", seal({"format": "tokenshards-run", "version": 99}), FormatVersionError, "99.*Upgrade tokenshards"),
        ("run.json", seal({"format": "tokenshards-run", "version": 1}), CorruptObjectError, "not a run"),
        ("run.json", None, MissingObjectError, "train --out"),
        ("best.safetensors", b"nothing", CorruptObjectError, "best.safetensors"),
        ("best.safetensors", None, MissingObjectError, "train --resume"),
        ("tokenizer/codebook.safetensors", b"nothing", CorruptObjectError, "codebook.safetensors"),
        ("tokenizer/codebook.safetensors", None, MissingObjectError, "codebook.safetensors"),
    ],
)
def test_damage_is_named(run: Path, name: str, change: bytes | None, error: type[Exception], says: str) -> None:
    if change is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(change)
    with pytest.raises(error, match=says):
        open_classifier(Store(str(run)))


def test_weights_of_another_model_are_named(run: Path, trained: Path, tmp_path: Path) -> None:
    other = request_for(open_dataset(str(trained / "train")), tmp_path / "other", trained / "cache", epochs=1)
    fit(replace(other, model=ModelConfig(name="vit_nano")))
    shutil.copyfile(tmp_path / "other" / "best.safetensors", run / "best.safetensors")
    with pytest.raises(CorruptObjectError, match="do not fit the model of run.json"):
        open_classifier(Store(str(run)))


def test_tokens_of_another_tokenizer_and_data_without_labels_are_refused(trained: Path, tmp_path: Path) -> None:
    store = Store(str(trained / "run"))
    convert(trained / "val_images", tmp_path / "foreign", fit=FIT)
    with pytest.raises(OtherTokenizerError, match="Tokenize the images with --tokenizer .*run/tokenizer") as caught:
        evaluate_run(store, open_dataset(str(tmp_path / "foreign")), weights="best", device=CPU)
    assert caught.value.exit_code == ConfigError.exit_code, "as `train` ends for such a --val"
    write_images(tmp_path / "flat", 5, classes=0)
    convert(tmp_path / "flat", tmp_path / "unlabelled", tokenizer=str(trained / "run" / "tokenizer"))
    with pytest.raises(ConfigError, match="none of the 5 images has a label; .*`predict` needs none"):
        evaluate_run(store, open_dataset(str(tmp_path / "unlabelled")), weights="best", device=CPU)
    convert(tmp_path / "flat", tmp_path / "inherited", tokenizer=str(trained / "train"))
    assert open_dataset(str(tmp_path / "inherited")).classes
    with pytest.raises(ConfigError, match="none of the 5 images has a label"):
        evaluate_run(store, open_dataset(str(tmp_path / "inherited")), weights="best", device=CPU)
    write_images(tmp_path / "others", 6, classes=1)
    (tmp_path / "others" / "class_0").rename(tmp_path / "others" / "zebra")
    convert(tmp_path / "others", tmp_path / "zebras", tokenizer=str(trained / "run" / "tokenizer"))
    with pytest.raises(ConfigError, match="zebra.*matched by name"):
        evaluate_run(store, open_dataset(str(tmp_path / "zebras")), weights="best", device=CPU)
