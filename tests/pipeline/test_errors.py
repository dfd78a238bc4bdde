"""Errors: what they say about installing; another process gets them whole."""

from __future__ import annotations

import importlib.util
import pickle
import shutil
from pathlib import Path

import pytest

from tests.datasets import ROOT
from tokenshards.pipeline import errors
from tokenshards.pipeline.errors import Reason


@pytest.mark.parametrize("checkout", [True, False])
def test_what_to_install_is_true_of_a_checkout_and_of_a_wheel(checkout: bool, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    there = shutil.copy(errors.__file__, tmp_path / "pipeline")
    if checkout:
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
    found = importlib.util.spec_from_file_location("errors_elsewhere", there)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    place = f"-e '{tmp_path}" if checkout else "'tokenshards"
    assert module.install_hint("train,ray") == f"pip install {place}[train,ray]'"
    assert module.install_hint() == f"pip install {place}'"


@pytest.mark.parametrize(
    "error",
    [
        errors.BadInput(Reason.DNS, "no such host", errors.Stage.FETCH),
        errors.CorruptObjectError("manifest.json", "not JSON"),
        errors.MissingObjectError("a.jpg", place="s3://bucket/a.jpg"),
        errors.TransientStorageError("it does not answer", advice="Wait"),
        errors.UnreadableObjectError("it is archived", reason=Reason.DNS, objects=("a", "b")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_another_process_gets_an_error_whole(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
