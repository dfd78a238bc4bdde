"""What a fresh interpreter has loaded after an import: start-up time, told by the list of modules and not by a clock."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("numpy", "torch", "ray", "pyarrow", "PIL", "pandas", "fsspec", "sklearn", "matplotlib", "webdataset")


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys, json\nsys.stdout.write('\\n' + json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.rpartition("\n")[2])) & set(HEAVY)


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import cli", set()),
        ("import pipeline.errors, pipeline.config, pipeline.canonical, pipeline.shards", set()),
        ("import pipeline.runners.local", set()),
        ("import pipeline.shards.dataset", {"numpy", "pyarrow", "fsspec"}),
        ("import pipeline.tokenizers.patch_kmeans", {"numpy", "fsspec"}),
        ("import pipeline.context", {"numpy", "pyarrow", "fsspec", "PIL"}),
        ("import stem_adaptors", set()),
    ],
)
def test_heavy_packages_load_only_where_they_are_needed(code: str, allowed: set[str]) -> None:
    assert loaded_after(code) <= allowed


def test_help_loads_nothing_heavy() -> None:
    code = "import cli, sys\nsys.argv = ['tokenshards', '--help']\ntry:\n    cli.app()\nexcept SystemExit:\n    pass"
    assert loaded_after(code) == set()
