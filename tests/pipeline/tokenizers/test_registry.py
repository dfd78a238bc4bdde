from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.tokenizers import toys
from tokenshards.pipeline.conversion.import_checkpoint import open_published
from tokenshards.pipeline.errors import ConfigError, TokenizerError
from tokenshards.pipeline.tokenizers import registry
from tokenshards.pipeline.tokenizers.base import check_ids
from tokenshards.pipeline.tokenizers.config import ImportConfig
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


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package that offers a family of its own, and one with a name of ours."""
    (tmp_path / "plugin_pixels.py").write_text("from tests.pipeline.tokenizers.toys import VideoToy\n\n\nclass Other: ...\n")
    folder = tmp_path / "plugin_pixels-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-pixels\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[tokenshards.tokenizers]\nplugin-video = plugin_pixels:VideoToy\npatch-kmeans = plugin_pixels:Other\ngone = plugin_pixels:Gone\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._offered.cache_clear()
    yield tmp_path
    registry._offered.cache_clear()


def test_installed_packages_offer_families(plugin: Path) -> None:
    assert {"plugin-video", "gone"} <= set(families())
    assert "plugin_pixels" not in sys.modules, "a package is imported when its family is asked for"
    assert load_family("plugin-video") is toys.VideoToy
    assert load_family("patch-kmeans") is PatchKMeans, "no package takes the place of a family of ours"
    with pytest.raises(ConfigError, match="plugin_pixels:Gone, which cannot .*; run: pip install --force-reinstall plugin-pixels"):
        load_family("gone")
    with pytest.raises(ConfigError, match="--kind is plugin-video, which takes no checkpoints"):
        open_published("plugin-video", "x.ckpt", ImportConfig())


def test_a_family_that_two_packages_offer_is_refused(plugin: Path) -> None:
    second = plugin / "other_pixels-1.0.dist-info"
    second.mkdir()
    (second / "METADATA").write_text("Metadata-Version: 2.1\nName: other-pixels\nVersion: 1.0\n")
    (second / "entry_points.txt").write_text("[tokenshards.tokenizers]\nplugin-video = other_pixels:Video\n")
    importlib.invalidate_caches()
    with pytest.raises(TokenizerError, match="'plugin-video' is offered by .*_pixels:.* and by .*Uninstall one of the two packages"):
        families()


def test_a_temporary_family_goes_away_after_an_error() -> None:
    with pytest.raises(RuntimeError), temporary_family("toy-video", "tests.pipeline.tokenizers.toys:VideoToy"):
        assert load_family("toy-video") is toys.VideoToy
        raise RuntimeError
    assert "toy-video" not in families()


def test_a_missing_package_tells_what_to_install() -> None:
    with temporary_family("broken", "no_such_package.model:Model"), pytest.raises(ConfigError, match="no_such_package.*pip install"):
        load_family("broken")


def test_ids_outside_of_the_vocabulary_are_refused() -> None:
    toy = toys.ConcatToy()
    ids = toy.encode(toys.paint(toys.np.zeros((1, 1)), 1, 1)).ids_BLQ
    check_ids(ids, toy.spec)
    ids[0, 3, 2] = 4
    with pytest.raises(TokenizerError, match="id 4 at level 2; expected 0 to 3"):
        check_ids(ids, toy.spec)
