"""A digest of our source files: driver and workers of one run must run the same code, and a version number does not show local edits."""

from __future__ import annotations

import hashlib
import os
import sys
from functools import cache
from pathlib import Path

import tokenshards

__all__ = ["code_digest", "import_root", "own_module", "sources_digest"]


def import_root() -> Path:
    """Return the folder that holds the package `tokenshards`: a checkout or site-packages."""
    return Path(tokenshards.__file__).resolve().parents[1]


def own_module(name: str) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of a process that runs a module of this code, whatever packages the current folder holds."""
    path = os.pathsep.join(filter(None, [str(import_root()), os.environ.get("PYTHONPATH")]))
    # -P keeps the current folder, which may hold a `tokenshards` of the user, off the import path.
    return [sys.executable, "-P", "-m", name], {**os.environ, "PYTHONPATH": path}


def sources_digest(*roots: Path) -> str:
    """Return 12 hex digits over every Python file below the package folders."""
    files = sorted((f"{root.name}/{path.relative_to(root).as_posix()}", path) for root in roots for path in root.rglob("*.py"))
    lines = "".join(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for name, path in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


@cache
def code_digest() -> str:
    """Return the digest of the package `pipeline` as this process imports it."""
    return sources_digest(import_root() / "tokenshards" / "pipeline")
