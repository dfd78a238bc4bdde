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
    "lightning",
    "accelerate",
    "transformers",
)


ROOT = Path(__file__).resolve().parents[1]
BRIDGES = (
    "lightning_modules",
    "webdataset_pipeline",
    "timm_backbones",
    "ray_connection",
    "ray_internals",
    "ray_places",
    "ray_train",
    "ray_worker",
)
READING = sorted(
    ".".join(("tokenshards", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in (ROOT / "stem_adaptors").rglob("*.py")
    if path.stem not in BRIDGES and path.parent.name not in ("commands", "comparison", "curves", "continual")  # they begin with images
)


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys, json\nsys.stdout.write('\\n' + json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.rpartition("\n")[2])) & set(HEAVY)


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("zstandard", "s3fs", "aiobotocore", "botocore", "ray", "diffusers", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import tokenshards.pipeline.conversion.tokenize, tokenshards.pipeline.conversion.fit
import tokenshards.pipeline.ledger.reencode, tokenshards.pipeline.ledger.verify, tokenshards.pipeline.runners.local_worker
import tokenshards.pipeline.tokenizers.published.vit_vqgan, tokenshards.pipeline.tokenizers.custom.torchscript
import tokenshards.stem_adaptors.training.trainer, tokenshards.stem_adaptors.commands.evaluation_report
from tokenshards.pipeline.shards.commit import pack_counts, unpack_counts
import numpy as np
assert unpack_counts(pack_counts(np.arange(9)), 9).tolist() == list(range(9))
"""


def test_local_work_needs_no_client_of_a_store_no_ray_and_no_zstandard() -> None:
    """A machine with a GPU and no network may lack them: `infra/bench/gpu_check.sh`."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import tokenshards", set()),
        ("import tokenshards.cli", set()),
        (
            "import tokenshards.pipeline.errors, tokenshards.pipeline.config, tokenshards.pipeline.canonical, tokenshards.pipeline.shards",
            set(),
        ),
        ("import tokenshards.pipeline.runners.local", set()),
        ("import tokenshards.pipeline.shards.dataset", {"numpy", "pyarrow", "fsspec"}),
        ("import tokenshards.pipeline.tokenizers.kmeans.patch_kmeans", {"numpy", "fsspec"}),
        ("import tokenshards.pipeline.job.context", {"numpy", "pyarrow", "fsspec", "PIL"}),
        ("import tokenshards.stem_adaptors", set()),
        ("import tokenshards.stem_adaptors.config", set()),
        (f"import {', '.join(READING)}", {"numpy", "pyarrow", "fsspec", "torch"}),
    ],
)
def test_heavy_packages_load_only_where_they_are_needed(code: str, allowed: set[str]) -> None:
    assert loaded_after(code) <= allowed


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tokenshards import cli\nsys.argv = ['tokenshards', '--help']\ntry:\n    cli.app()\nexcept SystemExit:\n    pass"
    )
    assert loaded_after(code) == set()


def test_training_loads_no_tokenizer() -> None:
    code = f"import {', '.join(READING)}, sys, json\nprint(json.dumps(list(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(result.stdout)
    assert "tokenshards.pipeline.shards.reader" in loaded
    rooms = ("tokenizers", "images", "job", "sources", "planning", "runners")
    assert [name for name in loaded if name.startswith(tuple(f"tokenshards.pipeline.{room}" for room in rooms))] == []
    assert [name for name in loaded if name.split(".")[0] in ("pipeline", "stem_adaptors", "cli")] == [], "one class must not exist twice"


def test_the_public_names_load_and_lead_to_one_class() -> None:
    import tokenshards
    from tests.stem_adaptors.torchvision_shim import allow_torchvision
    from tokenshards.pipeline.shards.dataset import TokenDataset

    allow_torchvision()  # Lightning imports it

    assert tokenshards.TokenDataset is TokenDataset
    for name in tokenshards.__all__:
        assert getattr(tokenshards, name) is not None
    assert set(tokenshards.__all__) <= set(dir(tokenshards))
    with pytest.raises(AttributeError, match="no attribute 'nothing'; its names are AugmentConfig, Batch"):
        _ = tokenshards.nothing


@pytest.mark.parametrize("package", ["pipeline", "stem_adaptors"])
def test_a_folder_is_not_imported_by_its_own_name(package: str) -> None:
    result = subprocess.run([sys.executable, "-c", f"import {package}.config"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and f"expected `import tokenshards.{package}`" in result.stderr


def test_commands_with_torch_keep_memory_and_let_idle_threads_sleep_before_it_is_there() -> None:
    code = (
        "import os, sys, tokenshards.pipeline.malloc\ntokenshards.pipeline.malloc.keep_freed_memory = lambda: print('kept')\n"
        "from tokenshards.pipeline.commands.process import prepare_for_torch\nprepare_for_torch()\n"
        "print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
        assert result.stdout.split() == ["kept", "False", expected]
