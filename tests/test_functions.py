"""`tokenshards.tokenize`, `train`, `evaluate` and `predict`: the commands as functions, with the same options and the same results."""

from __future__ import annotations

import inspect
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import tokenshards
from tests.datasets import call_cli, call_json, content, write_images
from tokenshards import cli
from tokenshards.pipeline.errors import ConfigError, SourceError, StoppedError, TokenshardsError
from tokenshards.stem_adaptors.data.mixing import mix
from tokenshards.stem_adaptors.data.selection import select
from tokenshards.stem_adaptors.training import trainer

SMALL: dict[str, Any] = {"size": 16, "codes": 16, "workers": 1}
MODEL = {"model.width": 8, "model.depth": 1, "model.heads": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tokenshards.TokenizeReport]:
    folder = tmp_path_factory.mktemp("functions")
    write_images(folder / "photos", 40, bad=1)
    return folder, tokenshards.tokenize(folder / "photos", folder / "tokens", license="CC0", max_bad=0.5, **SMALL)


@pytest.mark.parametrize("name", ["tokenize", "train", "evaluate", "predict"])
def test_a_function_has_the_options_of_its_command_and_their_defaults(name: str) -> None:
    command: Any = typer.main.get_command(cli.app)
    options = {}
    for param in command.commands[name].params:
        longest = max(param.opts, key=len)
        options[longest.removeprefix("--").replace("-", "_") if longest.startswith("-") else param.name] = param
    parameters = inspect.signature(getattr(tokenshards, name)).parameters
    assert parameters.keys() == options.keys() - {"json", "list_settings", "help"}
    for key, parameter in parameters.items():
        expected = inspect.Parameter.empty if options[key].required else options[key].default
        assert parameter.default == (True if key == "quiet" else expected), key
        assert (parameter.kind is parameter.POSITIONAL_OR_KEYWORD) == (options[key].required or options[key].param_type_name == "argument")
        assert f"{key}: {options[key].help}" in str(getattr(tokenshards, name).__doc__)


def test_tokenize_returns_what_the_command_prints(made: tuple[Path, tokenshards.TokenizeReport], capfd: pytest.CaptureFixture[str]) -> None:
    folder, report = made
    assert (report.images, report.quarantined, report.already_complete) == (40, 1, False)
    assert any("class_0" in line or "labels" in line for line in report.said) and report.understood is not None
    again = tokenshards.tokenize(str(folder / "photos"), str(folder / "tokens"))
    assert again.already_complete and again.images == 40 and capfd.readouterr() == ("", "")
    printed = call_json("tokenize", str(folder / "photos"), str(folder / "tokens"))
    assert {**again.to_json(), "bytes_out": 0} == {**printed, "bytes_out": 0}
    command = call_json(
        "tokenize", str(folder / "photos"), str(folder / "other"), "--size=16", "--codes=16", "--workers=1", "--max-bad=0.5"
    )
    assert command["images_committed"] == 40 and content(folder / "other") == content(folder / "tokens")
    assert tokenshards.open_dataset(str(folder / "tokens")).manifest.card["licence"] == "CC0"


def test_splits_have_a_report_each(tmp_path: Path) -> None:
    write_images(tmp_path / "photos" / "train", 12)
    write_images(tmp_path / "photos" / "val", 6, seed=1)
    report = tokenshards.tokenize(tmp_path / "photos", tmp_path / "tokens", splits=True, **SMALL)
    assert {name: part.images for name, part in report.splits.items()} == {"train": 12, "val": 6} and report.images == 18
    assert report.to_json()["splits"]["val"]["images_committed"] == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": "2"}, "workers is '2', a str; expected int or None"),
        ({"all_files": 1}, "all_files is 1, a int; expected bool"),
        ({"meta": 3}, "meta is 3; expected a list of texts"),
        ({"storage_option": ["anon"]}, "without key=value"),
        ({"codec": "gzip"}, "gzip"),
    ],
)
def test_a_wrong_value_is_a_sentence(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        tokenshards.tokenize(tmp_path, tmp_path / "out", **options)


def test_errors_are_exceptions_and_an_unknown_name_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        tokenshards.tokenize(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(TypeError, match="tokenize has no option 'worker' .did you mean 'workers'"):
        tokenshards.tokenize(tmp_path, tmp_path / "out", worker=2)
    with pytest.raises(TokenshardsError):
        tokenshards.train(tmp_path / "nothing", tmp_path / "run")


def test_train_returns_its_report_and_says_nothing(
    made: tuple[Path, tokenshards.TokenizeReport], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens, val = made[0] / "tokens", made[0] / "val"
    write_images(made[0] / "val_photos", 9, seed=1)
    tokenshards.tokenize(made[0] / "val_photos", val, tokenizer=tokens, workers=1)
    options: dict[str, Any] = {"val": val, "epochs": 2, "batch_size": 8, "device": "cpu", "cache_dir": tmp_path / "cache"}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    report = tokenshards.train(tokens, tmp_path / "run", set=MODEL, mix={str(tokens): 0.5}, **options)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), before)
    assert len(report.records) == 2 and report.records[-1]["train_loss"] == report.record["train_loss"]
    assert report.settings["model"].width == 8 and report.settings["loader"].batch_size == 8
    assert report.said[-1] == "2 epochs are done" and 0 <= (report.best_top1 or 0) <= 1
    words = [f"--set={name}={value}" for name, value in MODEL.items()]
    words += ["--epochs=2", "--batch-size=8", "--device=cpu", f"--cache-dir={tmp_path / 'cache'}", f"--mix={tokens}=0.5"]
    printed = call_json("train", str(tokens), "--out", str(tmp_path / "other"), "--val", str(val), *words)
    timed = {"images_per_second", "data_wait_share", "run"}
    assert {name: value for name, value in printed.items() if name not in timed} == {
        name: value for name, value in report.to_json().items() if name not in timed
    }


def test_a_stop_of_a_training_is_an_exception(
    made: tuple[Path, tokenshards.TokenizeReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, passed = made[0] / "tokens", 0

    def interrupt(name: str, key: str = "") -> None:
        nonlocal passed
        passed += 1
        if passed == 3:
            os.kill(os.getpid(), signal.SIGINT)

    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "device": "cpu", "cache_dir": tmp_path / "cache", "set": MODEL}
    monkeypatch.setattr(trainer, "crash_point", interrupt)
    with pytest.raises(StoppedError, match="stopped after step 3 of 10, with a checkpoint") as stopped:
        tokenshards.train(tokens, tmp_path / "run", **options)
    assert stopped.value.exit_code == 130
    assert tokenshards.train(tokens, tmp_path / "run", resume=True, **options).record["step"] == 10


def test_evaluate_and_predict_return_what_the_commands_print(
    made: tuple[Path, tokenshards.TokenizeReport], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens, run, photos = made[0] / "tokens", tmp_path / "run", tmp_path / "photos"
    dataset = tokenshards.open_dataset(str(tokens))
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "device": "cpu", "cache_dir": tmp_path / "cache", "set": MODEL}
    report = tokenshards.train(dataset, run, val=dataset, **options)  # datasets stand for their URLs
    measured = tokenshards.evaluate(run, dataset, device="cpu", confusion=tmp_path / "confusion.png")
    assert measured.accuracy.top1 == report.best_top1 and (tmp_path / "confusion.png").is_file()
    write_images(photos, 9, bad=1, seed=1)
    assert tokenshards.evaluate(run, dataset, device="cpu", confusion=tmp_path / "confusion.png") == measured
    from_images = tokenshards.evaluate(run, images=photos, workers=1)
    found = tokenshards.predict(run, photos, top=2)
    assert capfd.readouterr() == ("", "")
    assert call_json("evaluate", str(run), str(tokens), "--device=cpu") == measured.to_json()
    read = [one for one in found if one.error is None]
    assert len(found) == 10 and len(read) == from_images.accuracy.images == 9
    right = [one.label == Path(one.image).parent.name for one in read]
    assert sum(right) == round(from_images.accuracy.top1 * 9)
    out, _ = call_cli("predict", str(run), str(photos), "--top=2", "--json", expect=1)
    assert [json.loads(line) for line in out.splitlines()] == [one.to_json() for one in read]


def test_a_part_of_a_dataset_is_refused_with_a_sentence(made: tuple[Path, tokenshards.TokenizeReport], tmp_path: Path) -> None:
    dataset = tokenshards.open_dataset(str(made[0] / "tokens"))
    write_images(tmp_path / "photos", 9, seed=2)
    tokenshards.tokenize(tmp_path / "photos", tmp_path / "more", tokenizer=dataset, workers=1)
    joined = tokenshards.open_dataset([made[0] / "tokens", tmp_path / "more"])
    for part in (select(dataset, fraction=0.5), mix([(dataset, 1.0)]), joined):
        with pytest.raises(ConfigError, match="data is .*; expected one whole dataset or its URL.* fraction="):
            tokenshards.train(part, tmp_path / "run")
    with pytest.raises(ConfigError, match="images is empty"):
        tokenshards.predict(tmp_path / "run", [])
