"""What a missing package says: one error, exit code 2, and a command to copy."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import ROOT
from tokenshards.pipeline import optional_packages
from tokenshards.pipeline.commands.demo_images import write_digits
from tokenshards.pipeline.conversion.fit_kinds import FitOptions, open_fit
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.interop.seit.tables import import_torch
from tokenshards.pipeline.optional_packages import install_hint, optional_import
from tokenshards.pipeline.reports.drawings import plot_usage
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.submit.job_client import ray_client
from tokenshards.pipeline.submit.ray_dashboard import Dashboard
from tokenshards.pipeline.tokenizers.registry import load_family


@pytest.mark.parametrize("checkout", [True, False])
def test_what_to_install_is_true_of_a_checkout_and_of_a_wheel(checkout: bool, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    there = shutil.copy(optional_packages.__file__, tmp_path / "pipeline")
    if checkout:
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
    found = importlib.util.spec_from_file_location("packages_elsewhere", there)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    place = f"-e '{tmp_path}" if checkout else "'tokenshards"
    assert module.install_hint("train,ray") == f"pip install {place}[train,ray]'"
    assert module.install_hint() == f"pip install {place}'"


def test_an_import_that_fails_names_the_need_the_reason_and_the_command() -> None:
    expected = f"plots need nothing.here, which cannot be imported (No module named 'nothing'); run: {install_hint('plot')}"
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$") as refused, optional_import("plots need nothing.here", extra="plot"):
        import nothing.here  # type: ignore[import-not-found]  # noqa: F401
    assert refused.value.exit_code == 2


def test_a_torchvision_for_another_torch_is_told_from_a_missing_package() -> None:
    with pytest.raises(ConfigError) as refused, optional_import("models need timm", extra="timm"):
        raise RuntimeError("operator torchvision::nms does not exist")
    message = str(refused.value)
    assert f"another torch than the {version('torch')} of this machine (operator torchvision::nms does not exist)" in message
    assert "Install torchvision of the same release" in message and "pip install" not in message


def test_every_extra_that_a_message_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named: set[str] = set()
    for path in (*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stem_adaptors").rglob("*.py"), ROOT / "cli.py"):
        for text in re.findall(r'extra="([\w,]+)"|install_hint\("([\w,]+)"', path.read_text()):
            named |= set("".join(text).split(","))
    assert {"fit", "plot", "ray", "timm", "train"} <= named <= extras.keys()


def start_training(folder: Path) -> None:
    options = FitOptions(kind="vq-autoencoder", sample=2, seed=0, perceptual="vgg11", perceptual_weights="vgg11.pth")
    open_fit(options, out=Store(str(folder)), storage_options={}, say=print)


MISSING: dict[str, tuple[Callable[[Path], object], str]] = {
    "ray.job_submission": (lambda folder: ray_client(Dashboard("http://127.0.0.1:1", {})), "ray"),
    "torch": (lambda folder: import_torch("codebook.ckpt"), "train"),
    "timm": (start_training, "timm"),
    "vector_quantize_pytorch": (start_training, "fit"),
    "diffusers": (lambda folder: load_family("conv-vqgan"), "vqgan"),
    "matplotlib.figure": (lambda folder: plot_usage([np.arange(4)], folder / "usage.png"), "plot"),
    "sklearn.datasets": (write_digits, "demo"),
}


@pytest.mark.parametrize("package", MISSING)
def test_what_needs_a_package_says_so_before_it_does_anything(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use, extra = MISSING[package]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "tokenshards.pipeline.tokenizers.published.conv_vqgan", raising=False)
    with pytest.raises(ConfigError, match=re.escape(f"; run: {install_hint(extra)}")) as refused:
        use(tmp_path)
    assert refused.value.exit_code == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [("ray", ["tokenize", "images", "out", "--runner", "ray"], "ray"), ("filelock", ["train", "data", "--out", "run"], "train")],
)
def test_a_command_that_loads_a_package_at_its_start_ends_with_exit_code_2(
    package: str, words: list[str], extra: str, tmp_path: Path
) -> None:
    script = f"import sys; sys.modules[{package!r}] = None; from tokenshards import cli; sys.argv = ['tokenshards', *{words!r}]; cli.main()"
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: this command needs {package}, which cannot be imported (")
    assert ended.stderr.endswith(f"; run: {install_hint(extra)}\n"), ended.stderr
