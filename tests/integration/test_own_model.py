"""A model and a stem that a user wrote, as stem_adaptors/README.md shows them: their code and their commands."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.datasets import ROOT, call_cli, call_json, convert, write_images
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.training.run_directory import load_run


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "stem_adaptors" / "README.md").read_text(), re.DOTALL)


def test_the_example_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count, seed in (("photos", 36, 0), ("photos_val", 9, 1)):
        write_images(tmp_path / name, count, side=64, seed=seed)
    convert(tmp_path / "photos", tmp_path / "photos.tokens")
    convert(tmp_path / "photos_val", tmp_path / "photos_val.tokens", tokenizer=str(tmp_path / "photos.tokens"))
    (module,), (commands,) = blocks("py"), blocks("sh")
    (tmp_path / "mymodels.py").write_text(module)
    exported, *lines = commands.splitlines()
    pairs = dict(word.split("=") for word in shlex.split(exported)[1:])
    assert pairs == {"PYTHONPATH": "$PWD", "TOKENSHARDS_ALLOW_PYTHON": "mymodels"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TOKENSHARDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENSHARDS_ALLOW_PYTHON", pairs["TOKENSHARDS_ALLOW_PYTHON"])
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "tokenshards"
        call_cli(*arguments)
    assert load_run(Store("own")).model.name == "python:mymodels:make"
    assert call_json("evaluate", "own", "photos_val.tokens")["images"] == 9
    monkeypatch.delenv("TOKENSHARDS_ALLOW_PYTHON")
    _, error = call_cli("predict", "stemmed", "photos/class_0/img_0000.jpg", expect=2)
    assert "mymodels:make_stem, and TOKENSHARDS_ALLOW_PYTHON is not set" in error
    sys.modules.pop("mymodels")
