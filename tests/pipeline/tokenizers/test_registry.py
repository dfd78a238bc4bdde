from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from tests.pipeline.tokenizers import toys
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.tokenizers.base import check_ids
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import PatchKMeans
from tokenshards.pipeline.tokenizers.registry import families, load_family, register_family, temporary_family


def test_every_registered_family_loads_and_knows_its_name() -> None:
    assert "patch-kmeans" in families()
    assert load_family("patch-kmeans") is PatchKMeans


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(TokenizerError, match="'vqgann' is unknown; this version knows .*patch-kmeans"):
        load_family("vqgann")


def test_a_name_is_given_once() -> None:
    with pytest.raises(TokenizerError, match="already registered"):
        register_family("patch-kmeans", "somewhere:Else")
    with pytest.raises(TokenizerError, match="expected package.module:Class"):
        register_family("new", "somewhere.Else")
    assert "new" not in families()


def test_a_temporary_family_goes_away_after_an_error() -> None:
    with pytest.raises(RuntimeError), temporary_family("toy-video", "tests.pipeline.tokenizers.toys:VideoToy"):
        assert load_family("toy-video") is toys.VideoToy
        raise RuntimeError
    assert "toy-video" not in families()


def test_a_missing_package_tells_what_to_install() -> None:
    with temporary_family("broken", "no_such_package.model:Model"), pytest.raises(TokenizerError, match="no_such_package.*pip install"):
        load_family("broken")


def test_a_torchvision_for_another_torch_is_told_from_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old_vision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with temporary_family("broken", "old_vision:Model"), pytest.raises(TokenizerError) as refused:
        load_family("broken")
    message = str(refused.value)
    assert (
        f"built for another torch than the torch {importlib.metadata.version('torch')} of this machine (operator torchvision::nms"
        in message
    )
    assert "expected torchvision of the same release" in message and "pip install" not in message


def test_ids_outside_of_the_vocabulary_are_refused() -> None:
    toy = toys.ConcatToy()
    ids = toy.encode(toys.paint(toys.np.zeros((1, 1)), 1, 1)).ids_BLQ
    check_ids(ids, toy.spec)
    ids[0, 3, 2] = 4
    with pytest.raises(TokenizerError, match="id 4 at level 2; expected 0 to 3"):
        check_ids(ids, toy.spec)
