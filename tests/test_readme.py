"""The README is true: its commands run in the order in which they stand, its Python and its SQL too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import duckdb
import pytest

from tests.datasets import ROOT, run_cli, write_images

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
CONSOLE = [line[2:] for block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]


def test_the_commands_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", 60)
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
    assert ran == ["plan", "tokenize", "verify", "preview", "inspect"]
    assert (tmp_path / "look.png").exists() and (tmp_path / "usage.png").exists()
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code) == 1
    names: dict[str, object] = {}
    exec(code[0], names)
    assert names["batch"].ids_BLQ.shape[0] == 60  # type: ignore[attr-defined]


def test_the_tree_names_files_that_exist() -> None:
    tree = README.split("## Where things are")[1].split("```")[1]
    for name in re.findall(r"[\w/]+\.py|[\w/]+\.md", tree):
        assert list(ROOT.glob(name)) or list(ROOT.glob(f"pipeline/{name}")) or list(ROOT.glob(f"pipeline/*/{name}")), name


def test_every_command_is_in_the_table() -> None:
    table = README.split("## Commands")[1].split("Every command")[0]
    shown, _ = run_cli("--help")
    for command in re.findall(r"│ ([a-z][a-z-]+) ", shown):
        assert f"`{command}" in table, command


def test_the_newest_change_is_the_version_of_the_package() -> None:
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert newest is not None and version is not None and newest[1] == version[1]
