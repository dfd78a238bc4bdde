"""The README is true: its commands run in the order in which they stand, its Python and its SQL too."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.datasets import ROOT, run_cli, write_images

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
CONSOLE = [line[2:] for block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.timeout(300)  # fifteen processes, of which some train
def test_the_commands_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TOKENSHARDS_CACHE", str(tmp_path / "cache"))
    shutil.copytree(ROOT / "infra" / "recipes", tmp_path / "infra" / "recipes")
    for folder, count, seed in (("photos", 150, 0), ("val_photos", 12, 1)):
        write_images(tmp_path / folder, count, seed=seed)
        (tmp_path / folder / "class_0").rename(tmp_path / folder / "n07747607_orange")
    ran = []
    for line in CONSOLE:
        program, *arguments = shlex.split(line)
        if program == "tokenshards":
            run_cli(*arguments)
            ran.append(arguments[0])
        elif program == "duckdb":
            rows = duckdb.sql(arguments[1]).fetchall()
            assert len(rows) == 3 and all(len(ids) == 4 for _, _, ids in rows)
        else:
            assert program == "make", line
    looked = ["verify", "preview", "inspect", "evaluate-tokenizer", "verify"]
    assert ran == ["plan", "tokenize", *looked, "tokenize", "train", "evaluate", "predict"]
    assert [name for name in ("look.png", "usage.png", "confusion.png", "run/curves.png") if not (tmp_path / name).exists()] == []
    reading, training = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(reading, names)
    assert names["batch"].ids_BLQ.shape[0] == 150
    exec(training, names)
    assert names["batch"].ids_BLQ.shape[0] == 64 and names["loss"].item() < 2


def test_the_tree_names_files_that_exist() -> None:
    tree = README.split("## Where things are")[1].split("```")[1]
    for name in re.findall(r"[\w/]+\.py|[\w/]+\.md", tree):
        places = (name, f"pipeline/{name}", f"pipeline/*/{name}", f"stem_adaptors/{name}")
        assert any(list(ROOT.glob(place)) for place in places), name


def test_every_command_is_in_the_table() -> None:
    table = README.split("## Commands")[1].split("Every command")[0]
    shown, _ = run_cli("--help")
    for command in re.findall(r"│ ([a-z][a-z-]+) ", shown):
        assert f"`{command}" in table, command


def test_the_newest_change_is_the_version_of_the_package() -> None:
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert newest is not None and version is not None and newest[1] == version[1]


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
