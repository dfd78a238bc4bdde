"""Benchmarks are run by hand and rarely. What they import of this package must be there on every day."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path for folder in ("bench", "aws", "local_s3") for path in (ROOT / "infra" / folder).rglob("*.py"))


def imported_names(script: Path) -> set[tuple[str, str | None]]:
    """Return (module, name) of everything of this package that a script imports, at the top and inside functions."""
    found: set[tuple[str, str | None]] = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {(node.module, alias.name) for alias in node.names}
    return {(module, name) for module, name in found if module.split(".")[0] == "tokenshards"}


def missing_names(script: Path) -> list[str]:
    missing = []
    for module, name in sorted(imported_names(script), key=str):
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing.append(f"{module}: {error}")
            continue
        if name is not None and not hasattr(loaded, name):
            try:
                importlib.import_module(f"{module}.{name}")
            except ModuleNotFoundError:
                missing.append(f"{module}.{name}")
    return missing


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT / "infra")))
def test_what_a_script_of_infra_imports_of_this_package_is_there(script: Path) -> None:
    assert missing_names(script) == []


def test_a_name_that_moved_is_found(tmp_path: Path) -> None:
    script = tmp_path / "bench.py"
    script.write_text(
        "from tokenshards.pipeline.errors import ConfigError, MovedError\n"
        "def late():\n    from tokenshards.pipeline import shards, gone\n    import tokenshards.nowhere\n"
    )
    found = sorted(line.split(":")[0] for line in missing_names(script))
    assert found == ["tokenshards.nowhere", "tokenshards.pipeline.errors.MovedError", "tokenshards.pipeline.gone"]
    assert len(SCRIPTS) > 20
