"""Recipes by name and by path."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from tests.documents import parse
from tokenshards import cli
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.recipes import recipe_file, recipe_names
from tokenshards.stem_adaptors.training.defaults import read_recipe


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_of_the_package_has_all_settings_and_a_command_that_names_it(name: str) -> None:
    parts = read_recipe(name).keys()
    text = Path(recipe_file(name)).read_text().replace("\\\n", " ")
    [command] = re.findall(r"^ +.*?tokenshards ((?:train|pretrain) .*)$", text, re.MULTILINE)
    assert command.endswith(f"--recipe {name}")
    assert parts == {"model", "augment", "loader", "train"} | ({"mask"} if command.startswith("pretrain") else set())
    parse(typer.main.get_command(cli.app), shlex.split(command))
    assert "Cost: " in text and "Expected" in text


@pytest.mark.parametrize(
    ("before", "after"), [("seitpp_mtm_vit_b_imagenet1k", "seitpp_finetune_vit_b_imagenet1k"), ("laptop_64px_mtm", "laptop_64px_finetune")]
)
def test_fine_tuning_has_the_encoder_of_its_pre_training(before: str, after: str) -> None:
    found, wanted = read_recipe(after)["model"], read_recipe(before)["model"]
    assert replace(found, drop_path=0.0) == wanted


def test_a_path_is_a_recipe_too_and_a_folder_of_the_user_hides_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "from tokenshards.stem_adaptors.config import TrainConfig\nTRAIN = TrainConfig(epochs=7)\n"
    for name in ("own.py", "own", "laptop_64px"):
        Path(name).write_text(text)
    assert read_recipe("own.py")["train"].epochs == read_recipe("own")["train"].epochs == 7
    assert read_recipe("laptop_64px")["train"].epochs == 20 and read_recipe("./laptop_64px")["train"].epochs == 7


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--recipe seit_vit_b: no such recipe and no such file \(did you mean 'seit_vit_b_imagenet1k'"):
        read_recipe("seit_vit_b")
    with pytest.raises(
        ConfigError, match=f"--recipe nothing.py: no such recipe and no such file; expected one of {', '.join(recipe_names())}"
    ):
        read_recipe("nothing.py")
