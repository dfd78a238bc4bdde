"""The demo's folder: only what the demo wrote is ever removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets import call_cli
from tokenshards.pipeline.commands.demo_folder import MARK, clear_demo_folder
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.commands.demo_training import train_demo
from tokenshards.stem_adaptors.reporting.progress import TrainingReporter

OWN = ("images/cat.jpg", "photos/holiday.jpg", "digits_train/1.png", "run/notes.md")


def write(root: Path, *names: str) -> dict[str, bytes]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return files(root)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", OWN)
def test_a_folder_with_something_of_somebody_else_is_refused_and_stays(name: str, tmp_path: Path) -> None:
    before = write(tmp_path, name)
    _, errors = call_cli("demo", str(tmp_path), expect=2)
    assert "expected a new or empty folder" in errors and name.partition("/")[0] in errors
    assert files(tmp_path) == before


def test_the_second_half_refuses_such_a_folder_too(tmp_path: Path) -> None:
    before = write(tmp_path, *OWN)
    with pytest.raises(ConfigError, match="expected a new or empty folder"):
        train_demo(str(tmp_path), TrainingReporter(quiet=True))
    assert files(tmp_path) == before


def test_its_own_folder_is_cleared_by_name_and_other_files_in_it_stay(tmp_path: Path) -> None:
    root = tmp_path / "new" / "demo"
    clear_demo_folder(root, "images", "photos")
    assert set(files(root)) == {MARK}
    write(root, "images/0.png", "photos/1.jpg", "cache/2", "photos.png")
    clear_demo_folder(root, "images", "photos")
    assert set(files(root)) == {MARK, "cache/2", "photos.png"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(ConfigError, match="cannot use this folder"):
        clear_demo_folder(tmp_path / "demo", "images")
    assert (tmp_path / "demo").read_text() == "mine"
