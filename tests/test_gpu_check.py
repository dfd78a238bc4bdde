"""infra/bench/gpu_check.sh where there is no GPU: what it prints, that a part which hangs or fails costs itself, and its arithmetic."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenshards.stem_adaptors.mask_config import MaskConfig

ROOT = Path(__file__).resolve().parents[1]
SCRIPT, PARTS = ROOT / "infra" / "bench" / "gpu_check.sh", ROOT / "infra" / "bench" / "gpu_check"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the modules beside the script be imported by their bare names, as it does."""
    monkeypatch.syspath_prepend(str(PARTS))
    monkeypatch.syspath_prepend(str(PARTS.parent))


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, env=env)


def test_it_prints_one_json_and_writes_each_part(tmp_path: Path) -> None:
    done = check("--cpu", "--only", "environment", "--out", str(tmp_path))
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["ok"] and report == json.loads((tmp_path / "gpu_check.json").read_text())
    part = report["parts"]["environment"]
    assert json.loads((tmp_path / "environment.json").read_text()).items() <= part.items()
    assert part["torch"] == torch.__version__ and part["measured"]["fp32_tflops"] > 0 and part["bf16_peak_tflops"] is None


def test_a_python_without_what_is_needed_is_named(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    done = subprocess.run(
        [str(SCRIPT), "--cpu", "--only", "train", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": str(tmp_path / "bare" / "bin" / "python")},
    )
    report = json.loads(done.stdout)
    assert done.returncode == 1 and not report["ok"]
    assert re.match(
        r"packages: RuntimeError: \S+ lacks torch, numpy, .*pillow, .*; choose another with PYTHON",
        report["parts"]["environment"]["problems"][0],
    )
    assert report["parts"]["train"]["problems"] == ["not begun: see the problems of the environment"]


def test_wrong_options_are_one_sentence(tmp_path: Path) -> None:
    done = check("--wheels", str(tmp_path), "--cpu")
    assert done.returncode == 2 and done.stderr.startswith(f"gpu_check: {tmp_path} holds no .whl file; expected")
    done = check("--images", str(tmp_path / "none"))
    assert done.returncode == 2 and "expected a folder of images" in done.stderr


SLOW = """
import argparse, subprocess, sys, time
from pathlib import Path
from common import Report, Skipped
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path); parser.add_argument("--cpu", action="store_true")
report = Report(parser.parse_args().out)
with report.step("first"):
    report.add(value=7, child=subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
with report.step("second"):
    raise ValueError("no good")
with report.step("half"):
    report.add(value=float("nan"))
with report.step("third"):
    raise Skipped("not here")
with report.step("fourth"):
    time.sleep(600)
"""


def test_a_part_that_fails_and_hangs_keeps_what_it_measured_and_leaves_no_process(
    parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import main

    (tmp_path / "part_slow.py").write_text(SLOW)
    monkeypatch.setattr(main, "__file__", str(tmp_path / "main.py"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PARTS), str(ROOT)]))
    options = argparse.Namespace(out=tmp_path, cpu=True, images=None)
    found = main.run_part("slow", options, 5.0)
    assert not found["ok"] and found["value"] == 7 and found["skipped"] == {"third": "not here"}
    assert found["problems"] == [
        "it took longer than 5 s and was stopped; what it had measured is here",
        "second: ValueError: no good",
        found["problems"][2],
    ]
    assert found["problems"][2].startswith("half: ValueError: Out of range float")
    for _ in range(100):
        if not running(found["child"]):
            break
        time.sleep(0.05)
    assert not running(found["child"])


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


BARE = """
import importlib.machinery as machinery
import sys

find, hidden = machinery.PathFinder.find_spec, set(sys.argv[1].split())
machinery.PathFinder.find_spec = lambda name, *where: None if name.partition(".")[0] in hidden else find(name, *where)
import part_encode, part_environment, part_tests, part_train, tests.conftest
import tests.gpu.conftest, tests.gpu.test_augmentation, tests.gpu.test_tokenizers, tests.gpu.test_training
assert not hidden & set(sys.modules), hidden & set(sys.modules)
"""


def test_every_part_runs_without_the_packages_that_the_page_does_not_ask_for(parts: None) -> None:
    import part_environment

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    names = {re.split(r"[\[>=<]", name)[0].replace("-", "_") for name in wanted} | {"sklearn", "botocore", "aiobotocore"}
    hidden = names - {*part_environment.NEEDED, "pillow", "torch", "timm", "tokenshards", "setuptools"}
    assert hidden >= {"ray", "zstandard", "s3fs", "braceexpand", "aiohttp", "pytest_timeout"}
    path = os.pathsep.join(map(str, (PARTS, PARTS.parent, ROOT)))
    command = [sys.executable, "-c", BARE, " ".join(hidden)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_flops_of_a_step_are_those_that_torch_counts(parts: None) -> None:
    import part_train

    from tokenshards.stem_adaptors.models.classifier import VisionTransformer
    from tokenshards.stem_adaptors.models.stems import ConvStem

    model: Any = VisionTransformer(ConvStem(32, 64, (28, 28), (2, 2), overlap=True), classes=10, width=64, depth=3, heads=2)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.randn(2, 32, 28, 28)).sum().backward()
    # The input of the stem wants no gradient, which is one sixth of its six products.
    assert part_train.flops_per_image(model) == pytest.approx(counter.get_total_flops() / 2, rel=0.1)


def test_both_parts_that_train_take_steps(parts: None, tmp_path: Path) -> None:
    import part_pretrain
    import part_train

    few = replace(part_train.SMALL, warm_up=1, steps=1)
    bench = part_train.Bench(few, tmp_path, torch.device("cpu"))
    assert bench.from_loader(bench.trainer(part_train.FULL, "train"))["images_per_second"] > 0
    bench.scale = replace(part_pretrain.TINY, warm_up=1, steps=1)
    assert bench.from_loader(part_pretrain.trainer(bench, "pretrain", MaskConfig()))["images_per_second"] > 0


@pytest.mark.soak
def test_the_whole_check_runs_on_a_cpu(tmp_path: Path) -> None:
    done = check("--cpu", "--out", str(tmp_path))
    report = json.loads(done.stdout)
    assert report["ok"], report
    assert report["parts"]["tests"]["counts"]["passed"] > 60 and report["parts"]["encode"]["tokenized"]["equal"]
    assert report["parts"]["pretrain"]["seen"] == 117 and report["parts"]["pretrain"]["images_per_second"] > 0
    assert report["parts"]["train"]["images_per_second"] > 0 and report["parts"]["train"]["agreement"]["fp32"]["same_top1"] == 1
