"""What is sent to a cluster: the code that runs, links resolved, the same package for the same code, and what a node needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package, get_uri_for_directory

from tests.datasets import ROOT
from tests.submitting import foreign_folder
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.submit import shipped_code
from tokenshards.pipeline.submit.job_entry import CLUSTER_PYTHON, node_problem
from tokenshards.pipeline.submit.shipped_code import read_project, stage_code


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return stage_code(tmp_path_factory.mktemp("staged"), read_project())


def on_a_node(modules: list[Path], folder: Path) -> str:
    """Pack the modules as Ray's client does, unpack each into a folder of its own as Ray's agent does; return the import path."""
    places = []
    for module in modules:
        packed = folder / f"{module.name}.zip"
        create_package(str(module), packed, include_gitignore=True, include_parent_dir=True)
        places.append(folder / "at" / module.name)
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(places[-1])
    return os.pathsep.join(str(place) for place in places)


def run_python(*arguments: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run([sys.executable, "-P", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_it_is_the_code_that_runs(staged: list[Path], tmp_path: Path) -> None:
    names = {str(path.relative_to(staged[0])) for path in staged[0].rglob("*") if path.is_file()}
    tracked = subprocess.run(["git", "ls-files", "pipeline", "stem_adaptors"], cwd=ROOT, capture_output=True, text=True, check=True)
    on_disk = {name for name in tracked.stdout.split() if (ROOT / name).exists()}
    assert on_disk - names == set() and names - on_disk <= {"__init__.py", "cli.py", "py.typed"}.union(untracked())
    assert (staged[0] / "pipeline" / "shards" / "SPEC.md").read_bytes() == (ROOT / "pipeline" / "shards" / "SPEC.md").read_bytes()


def untracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-o", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


def test_the_same_code_is_the_same_package_and_links_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    (real / "pipeline").mkdir(parents=True)
    (real / "pipeline" / "job.py").write_text("JOB = 1\n")
    package = real / "tokenshards"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "pipeline").symlink_to("../pipeline")
    (package / "cli.py").symlink_to("../cli.py")
    (real / "cli.py").write_text("CLI = 1\n")
    monkeypatch.setattr(shipped_code, "code_folder", lambda: package)

    def uri(name: str) -> str:
        (tmp_path / name).mkdir()
        staged = stage_code(tmp_path / name, read_project())[0]
        assert staged.name == "tokenshards" and not any(path.is_symlink() for path in staged.rglob("*"))
        assert {str(path.relative_to(staged)) for path in staged.rglob("*.*")} == {"__init__.py", "cli.py", "pipeline/job.py"}
        return get_uri_for_directory(str(staged), include_gitignore=True)

    first = uri("first")
    (real / "pipeline" / "__pycache__").mkdir()
    (real / "pipeline" / "__pycache__" / "job.cpython-311.pyc").write_bytes(b"compiled")
    (real / "pipeline" / ".job.py.swp").write_bytes(b"an editor's")
    assert uri("second") == first, "neither the clock, nor the place, nor compiled files matter"
    (real / "pipeline" / "job.py").write_text("JOB = 2\n")
    assert uri("third") != first
    shutil.rmtree(package)
    with pytest.raises(ConfigError, match="tokenshards not found beside the running code"):
        uri("fourth")


def test_a_node_finds_it_where_ray_unpacks_it_and_can_submit_in_turn(staged: list[Path], tmp_path: Path) -> None:
    env = {"PYTHONPATH": on_a_node(staged, tmp_path)}
    foreign_folder(tmp_path / "foreign")
    shown = run_python("-m", "tokenshards.pipeline.submit.job_entry", "--version", cwd=tmp_path / "foreign", env=env)
    assert shown.returncode == 0 and shown.stdout == f"tokenshards {read_project().version}\n", shown.stderr
    code = (
        "from tokenshards.pipeline.submit.shipped_code import *; p = read_project(); print(p.requirements, p.ray, [code_folder().exists()])"
    )
    shown = run_python("-c", code, cwd=tmp_path, env=env)
    project = read_project()
    assert shown.stdout.startswith(f"{project.requirements} {project.ray} [True"), shown.stderr


def test_an_installed_package_is_described_by_its_metadata(tmp_path: Path) -> None:
    copy = tmp_path / "site"
    shutil.copytree(ROOT / "tokenshards", copy / "tokenshards", ignore=shutil.ignore_patterns("__pycache__"))
    info = copy / "tokenshards-3.2.1.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: tokenshards", "Version: 3.2.1", "Requires-Dist: numpy>=1.26", "Provides-Extra: ray"]
    lines += ['Requires-Dist: ray[default]>=2.52; extra == "ray"', "Provides-Extra: train", 'Requires-Dist: torch>=2.4; extra == "train"']
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    code = "from tokenshards.pipeline.submit.shipped_code import read_project as read; p = read(); print(p.version, p.requirements, p.ray)"
    shown = run_python("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(copy)})
    assert shown.stdout.strip() == "3.2.1 ('numpy>=1.26',) ray[default]>=2.52", shown.stderr


def test_the_entry_says_what_a_node_lacks(staged: list[Path], tmp_path: Path) -> None:
    env = {"PYTHONPATH": on_a_node(staged, tmp_path)}
    (info,) = (tmp_path / "at").glob("*/*.dist-info")
    assert all("extra ==" in text for text in PathDistribution(info).requires or ()), "pip fetches nothing for it"
    metadata = (info / "METADATA").read_text()
    more = 'Requires-Dist: nosuchpackage>=1; extra == "cluster"\nRequires-Dist: fsspec>=9'
    (info / "METADATA").write_text(metadata.replace("Requires-Dist: fsspec>=", more))
    shown = run_python("-m", "tokenshards.pipeline.submit.job_entry", "--version", cwd=tmp_path, env=env)
    assert shown.returncode == 2 and shown.stdout == ""
    assert shown.stderr.startswith("error: the Python of this node") and shown.stderr.count("\n") == 1
    assert "nosuchpackage>=1" in shown.stderr and "fsspec>=92024.6 (it has" in shown.stderr and "--install-dependencies" in shown.stderr
    shown = run_python("-m", "tokenshards.pipeline.submit.job_entry", "--version", cwd=tmp_path, env={**env, CLUSTER_PYTHON: "3.8.1"})
    assert shown.returncode == 2 and "Ray runs Python 3.8.1" in shown.stderr and shown.stderr.count("\n") == 1


def test_a_node_with_everything_has_no_problem() -> None:
    project = read_project()
    assert node_problem([*project.requirements, project.ray], "") == ""
    assert "numpy>=99 (it has" in node_problem(["numpy>=99"], "")
