"""The wheel that is sent to a cluster: the same bytes for the same code, a name that tells code apart, and nothing to download."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from tests.datasets import ROOT
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.submit.job_entry import CLUSTER_PYTHON, node_problem
from tokenshards.pipeline.submit.wheel import build_wheel, read_project

REQUIRED = "fsspec"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def run_python(*arguments: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run([sys.executable, "-P", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_it_holds_the_code_that_runs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        for path in ("cli.py", "pipeline/shards/SPEC.md", "pipeline/wheel.py", "stem_adaptors/train.py"):
            assert archive.read(path) == (ROOT / path).read_bytes()
    tracked = subprocess.run(["git", "ls-files", "pipeline", "stem_adaptors"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) - names == set()
    assert not any("__pycache__" in name or name.startswith("tests/") for name in names)
    assert wheel.stat().st_size < 1 << 20


def test_the_same_code_gives_the_same_file_and_other_code_another_name(wheel: Path, tmp_path: Path) -> None:
    again = build_wheel(tmp_path)
    assert again.name == wheel.name and again.read_bytes() == wheel.read_bytes()
    copy = copy_of_the_code(tmp_path / "copy")
    project = replace(read_project(), root=copy)
    (tmp_path / "second").mkdir()
    assert build_wheel(tmp_path / "second", project).name == wheel.name, "the clock and the place do not matter"
    (copy / "cli.py").write_text((copy / "cli.py").read_text() + "\n")
    assert build_wheel(tmp_path / "second", project).name != wheel.name
    (copy / "cli.py").unlink()
    with pytest.raises(ConfigError, match=r"cli\.py not found"):
        build_wheel(tmp_path / "second", project)


def copy_of_the_code(folder: Path) -> Path:
    folder.mkdir()
    for package in ("pipeline", "stem_adaptors"):
        # Another process may be writing the compiled files at this moment, under names that go at once.
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cli.py", folder)
    return folder


def test_pip_installs_it_without_an_index(wheel: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--disable-pip-version-check",
        str(wheel),
        f"--target={tmp_path / 'at'}",
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "at").iterdir()} >= {"cli.py", "pipeline", "stem_adaptors"}
    assert not (tmp_path / "at" / REQUIRED).exists()
    shown = run_python("-m", "tokenshards.pipeline.submit.job_entry", "--version", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "at")})
    assert shown.returncode == 0 and shown.stdout.startswith("tokenshards "), shown.stderr
    # A node can submit in turn: from the installed package, and what it sends is the same.
    code = "from pathlib import Path; from tokenshards.pipeline.submit.wheel import build_wheel; print(build_wheel(Path('.')).name)"
    built = run_python("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "at")})
    assert built.stdout.strip() == wheel.name, built.stderr


def test_an_installed_package_is_described_by_its_metadata(tmp_path: Path) -> None:
    copy = copy_of_the_code(tmp_path / "site")
    info = copy / "tokenshards-3.2.1.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: tokenshards", "Version: 3.2.1", "Requires-Dist: numpy>=1.26", "Provides-Extra: ray"]
    lines += ['Requires-Dist: ray[default]>=2.52; extra == "ray"', "Provides-Extra: train", 'Requires-Dist: torch>=2.4; extra == "train"']
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    code = "from tokenshards.pipeline.submit.wheel import read_project as read; p = read(); print(p.version, p.requirements, p.ray)"
    shown = run_python("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(copy)})
    assert shown.stdout.strip() == "3.2.1 ('numpy>=1.26',) ray[default]>=2.52", shown.stderr


def test_the_entry_says_what_a_node_lacks(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "at")
    info = next((tmp_path / "at").glob("*.dist-info"))
    assert all("extra ==" in text for text in PathDistribution(info).requires or ())
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "cli.py").write_text("raise RuntimeError('the code of somebody else runs')")
    env = {"PYTHONPATH": str(tmp_path / "at")}
    shown = run_python("-m", "tokenshards.pipeline.submit.job_entry", "--version", cwd=tmp_path / "foreign", env=env)
    assert shown.returncode == 0, shown.stderr
    metadata = (info / "METADATA").read_text()
    more = 'Requires-Dist: nosuchpackage>=1; extra == "cluster"\nRequires-Dist: fsspec>=9'
    (info / "METADATA").write_text(metadata.replace("Requires-Dist: fsspec>=", more))
    shown = run_python("-m", "tokenshards.pipeline.submit.job_entry", "--version", cwd=tmp_path / "foreign", env=env)
    assert shown.returncode == 2 and shown.stdout == ""
    assert shown.stderr.startswith("error: the Python of this node") and shown.stderr.count("\n") == 1
    assert "nosuchpackage>=1" in shown.stderr and "fsspec>=92024.6 (it has" in shown.stderr and "--install-dependencies" in shown.stderr
    shown = run_python("-m", "tokenshards.pipeline.submit.job_entry", "--version", cwd=tmp_path, env={**env, CLUSTER_PYTHON: "3.8.1"})
    assert shown.returncode == 2 and "Ray runs Python 3.8.1" in shown.stderr and shown.stderr.count("\n") == 1


def test_a_node_with_everything_has_no_problem() -> None:
    project = read_project()
    assert node_problem([*project.requirements, project.ray], "") == ""
    assert "numpy>=99 (it has" in node_problem(["numpy>=99"], "")
