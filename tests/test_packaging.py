"""What pip installs: one package, from the checkout and from an sdist alike, that no folder of the user can shadow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.datasets import ROOT, write_images
from tokenshards.stem_adaptors.recipes import recipe_names

FOREIGN = ("pipeline/__init__.py", "stem_adaptors/__init__.py", "cli.py")


def tracked(*places: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *places], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def checkout(folder: Path) -> Path:
    """Copy the tree as it stands, links as links: building writes beside the sources."""
    for name in tracked("pyproject.toml", "README.md", "LICENSE", "cli.py", "tokenshards", "pipeline", "stem_adaptors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build(kind: str, tree: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    built = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return target / built.stdout.splitlines()[-1]


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is made of the sdist."""
    folder = tmp_path_factory.mktemp("build")
    with tarfile.open(build("sdist", checkout(folder / "tree"), folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return build("wheel", next((folder / "unpacked").iterdir()), folder / "wheel")


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; what the wheel needs comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-index", "--no-deps", "-q"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True)
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def in_a_folder_of_the_user(folder: Path) -> Path:
    for name in FOREIGN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise RuntimeError('the code of somebody else runs')\n")
    return folder


def test_the_wheel_holds_one_package_and_all_of_it(wheel: Path, tmp_path: Path) -> None:
    names = names_in(wheel)
    sources = {f"tokenshards/{name}" for name in tracked("pipeline", "stem_adaptors") if name.endswith(".py")}
    assert names == sources | {f"tokenshards/{name}" for name in ("__init__.py", "cli.py", "py.typed", "pipeline/shards/SPEC.md")}
    assert names_in(build("wheel", checkout(tmp_path / "tree"), tmp_path / "wheel")) == names, "straight from the checkout it is the same"
    with zipfile.ZipFile(wheel) as archive:
        for name in ("cli.py", "pipeline/shards/SPEC.md", "stem_adaptors/training/trainer.py"):
            assert archive.read(f"tokenshards/{name}") == (ROOT / name).read_bytes()


def test_the_installed_program_runs_beside_folders_of_the_same_names(python: Path, tmp_path: Path) -> None:
    folder = in_a_folder_of_the_user(tmp_path)
    write_images(folder / "photos", 150)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python.with_name("tokenshards")), "tokenize", "photos", "photos.tokens", "--workers", "1", "--size", "32"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks, "the README shows no Python"
    where = "import tokenshards, sys; print(tokenshards.__file__); print([name for name in sys.modules if name.startswith('pipeline')])\n"
    for block in blocks:
        ran = subprocess.run([str(python), "-c", block + where], cwd=folder, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert Path(ran.stdout.splitlines()[-2]).is_relative_to(python.parents[1]) and ran.stdout.splitlines()[-1] == "[]"


def test_the_installed_program_has_the_recipes_by_name(python: Path, wheel: Path, tmp_path: Path) -> None:
    packed = {name.removeprefix("tokenshards/stem_adaptors/recipes/") for name in names_in(wheel) if "/recipes/" in name}
    assert packed == {"__init__.py", *(f"{name}.py" for name in recipe_names())}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = (
        "from tokenshards.stem_adaptors.training.defaults import read_recipe\n"
        "print(read_recipe('laptop_64px')['model'].width)\nread_recipe('laptop_64')"
    )
    ran = subprocess.run([str(python), "-c", code], cwd=in_a_folder_of_the_user(tmp_path), env=environment, capture_output=True, text=True)
    assert ran.stdout == "96\n" and "no such file (did you mean 'laptop_64px'" in ran.stderr
    assert f"expected one of {', '.join(recipe_names())}" in ran.stderr


def test_what_submit_ships_from_a_wheel_runs_on_a_node(python: Path, tmp_path: Path) -> None:
    folder = in_a_folder_of_the_user(tmp_path / "user")
    (tmp_path / "staged").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = (
        "from pathlib import Path\nfrom tokenshards.pipeline.submit.shipped_code import read_project, stage_code\n"
        f"print(*stage_code(Path({str(tmp_path / 'staged')!r}), read_project()), sep='\\n')"
    )
    shipped = subprocess.run([str(python), "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert shipped.returncode == 0, shipped.stderr
    package, _ = map(Path, shipped.stdout.splitlines())
    assert package.name == "tokenshards" and not any(path.is_symlink() for path in package.rglob("*"))
    job = [sys.executable, "-P", "-m", "tokenshards.pipeline.submit.job_entry", "--version"]
    shown = subprocess.run(job, cwd=folder, env={**environment, "PYTHONPATH": str(package.parent)}, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.startswith("tokenshards "), shown.stderr


def test_a_checkout_without_links_says_so(tmp_path: Path) -> None:
    tree = checkout(tmp_path)
    for name in ("pipeline", "stem_adaptors", "cli.py"):
        link = tree / "tokenshards" / name
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)  # what git writes on Windows, without core.symlinks
    for words in (["cli.py", "--version"], ["-c", "import tokenshards"]):
        shown = subprocess.run(
            [sys.executable, *words], cwd=tree, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tree)}
        )
        assert shown.returncode == 1
        assert "tokenshards/pipeline is a text file instead of a link" in shown.stderr and "core.symlinks" in shown.stderr
