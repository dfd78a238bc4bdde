"""What a fresh interpreter has loaded after an import: start-up time, told by the list of modules and not by a clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "numpy",
    "torch",
    "ray",
    "pyarrow",
    "PIL",
    "pandas",
    "fsspec",
    "sklearn",
    "matplotlib",
    "webdataset",
    "timm",
    "torchvision",
    "tensorboard",
)


ROOT = Path(__file__).resolve().parents[1]
BRIDGES = ("timm_backbones", "ray_connection", "ray_places", "ray_train", "ray_worker")
READING = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "stem_adaptors").rglob("*.py")
    if path.stem not in BRIDGES
)


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys, json\nsys.stdout.write('\\n' + json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.rpartition("\n")[2])) & set(HEAVY)


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import cli", set()),
        (
            "import tokenshards.pipeline.errors, tokenshards.pipeline.config, tokenshards.pipeline.canonical, tokenshards.pipeline.shards",
            set(),
        ),
        ("import tokenshards.pipeline.runners.local", set()),
        ("import tokenshards.pipeline.shards.dataset", {"numpy", "pyarrow", "fsspec"}),
        ("import tokenshards.pipeline.tokenizers.kmeans.patch_kmeans", {"numpy", "fsspec"}),
        ("import tokenshards.pipeline.job.context", {"numpy", "pyarrow", "fsspec", "PIL"}),
        ("import stem_adaptors", set()),
        ("import tokenshards.stem_adaptors.config", set()),
        (f"import {', '.join(READING)}", {"numpy", "pyarrow", "fsspec", "torch"}),
    ],
)
def test_heavy_packages_load_only_where_they_are_needed(code: str, allowed: set[str]) -> None:
    assert loaded_after(code) <= allowed


def test_help_loads_nothing_heavy() -> None:
    code = "import cli, sys\nsys.argv = ['tokenshards', '--help']\ntry:\n    cli.app()\nexcept SystemExit:\n    pass"
    assert loaded_after(code) == set()


def test_training_loads_no_tokenizer() -> None:
    code = f"import {', '.join(READING)}, sys, json\nprint(json.dumps([name for name in sys.modules if name.startswith('pipeline.')]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(result.stdout)
    assert "tokenshards.pipeline.shards.reader" in loaded
    assert [
        name
        for name in loaded
        if name.startswith(
            (
                "tokenshards.pipeline.tokenizers",
                "tokenshards.pipeline.images.decode",
                "tokenshards.pipeline.job.shard_job",
                "tokenshards.pipeline.sources",
            )
        )
    ] == []


def test_commands_with_torch_keep_memory_and_let_idle_threads_sleep_before_it_is_there() -> None:
    code = (
        "import cli, os, sys, tokenshards.pipeline.malloc\npipeline.memory.keep_freed_memory = lambda: print('kept')\n"
        "cli._prepare_for_torch()\nprint('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
        assert result.stdout.split() == ["kept", "False", expected]
