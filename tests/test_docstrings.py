"""Each public name has an example in its docstring, and every example runs as it stands: on images, their tokens, and a run."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokenshards
from tests.datasets import write_images
from tests.stem_adaptors.torchvision_shim import allow_torchvision

allow_torchvision()  # timm and Lightning import it
NAMES = [name for name in tokenshards.__all__ if name != "__version__"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    write_images(folder / "photos", 72, side=64)
    write_images(folder / "more_photos", 12, side=64, seed=3)
    tokenshards.tokenize(folder / "photos", folder / "photos.tokens", workers=1)
    tokenshards.tokenize(folder / "more_photos", folder / "more.tokens", tokenizer=folder / "photos.tokens", workers=1)
    return folder


def examples_of(name: str) -> list[doctest.DocTest]:
    """Return the examples of a name and of its methods. A class that inherits a method has no example of its own there."""
    value: Any = getattr(tokenshards, name)
    names = {"tokenshards": tokenshards, "np": np, "torch": torch}
    if inspect.isclass(value):
        found = doctest.DocTestFinder(exclude_empty=True).find(value, name, module=False, globs=names)
    else:
        found = [doctest.DocTestParser().get_doctest(str(value.__doc__), names, name, None, None)]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", sorted(NAMES, key=lambda name: name == "TrainReport"))  # its run is made by `train`
def test_the_examples_of_a_public_name_run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TOKENSHARDS_CACHE", str(folder / "cache"))
    tests = examples_of(name)
    assert tests, f"tokenshards.{name} has no example in its docstring"
    said: list[str] = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not said, "".join(said)
