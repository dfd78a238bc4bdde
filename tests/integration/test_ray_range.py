"""Training on a cluster of the oldest Ray that pyproject.toml allows. The newest is the pinned one, on which every other test runs."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.datasets import ROOT

TESTS = "tests/integration/test_ray_train.py"


def allowed_range() -> tuple[str, str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    low, high = extras["ray"][0].partition("]")[2].split(",")
    return low, high


def test_the_module_of_private_names_says_the_range_of_the_package() -> None:
    internals = pytest.importorskip("tokenshards.stem_adaptors.cluster.ray_internals", reason="Ray (an extra) is not installed")
    assert internals.SUPPORTED == allowed_range()


@pytest.mark.soak
def test_the_oldest_ray_trains_too(tmp_path: Path) -> None:
    oldest = allowed_range()[0].removeprefix(">=")
    folder = tmp_path / "ray"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), f"ray=={oldest}.*"]
    subprocess.run(install, check=True, timeout=600)
    # The folder comes before the environment's own Ray, in this process and in all that it starts.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    found = subprocess.run(
        [sys.executable, "-c", "import ray; print(ray.__version__)"], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(oldest)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "300", TESTS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
