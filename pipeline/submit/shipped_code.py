"""The running code as a folder that Ray ships to the nodes of a job (`py_modules`), with metadata that lists a node's requirements.

Ray packs a folder under its own name, follows links, and unpacks it on the node's import path. The package's URI is a hash of its content.
So we ship a copy without compiled files: these would change the hash, and may disappear while Ray packs.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tokenshards.pipeline.code_identity import import_root
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.submit.job_entry import EXTRA

__all__ = ["Project", "code_folder", "read_project", "stage_code"]

NAME = "tokenshards"
_UNSHIPPED = shutil.ignore_patterns("__pycache__", ".*", "*.pyc", "*.pyo", "*.orig", "*.rej", "*.swp")


def code_folder() -> Path:
    """Return the folder of the running package; its links lead to all of the code."""
    return import_root() / NAME


def stage_code(folder: Path, project: Project) -> list[Path]:
    """Copy the code into `folder` with links resolved; return the paths for Ray's `py_modules`. Raises ConfigError."""
    source, staged = code_folder(), folder / NAME
    if not source.exists():
        raise ConfigError(f"{source} not found beside the running code; install {NAME} again completely")
    shutil.copytree(source, staged, ignore=_UNSHIPPED)
    return [staged, _metadata(folder, project)]


def _metadata(folder: Path, project: Project) -> Path:
    """Write metadata for `importlib.metadata`. The requirements are under an extra that only `job_entry` reads."""
    version = project.version.partition("+")[0]
    info = folder / f"{NAME}-{version}.dist-info"
    info.mkdir()
    stated = "".join(f'Requires-Dist: {text}; extra == "{EXTRA}"\n' for text in [*project.requirements, project.ray])
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\nProvides-Extra: {EXTRA}\n{stated}")
    return info


@dataclass(frozen=True, kw_only=True)
class Project:
    """Version and requirements of the running code."""

    version: str
    requirements: tuple[str, ...]
    """Requirements of a node that tokenizes, without Ray."""
    ray: str
    """The requirement on Ray, such as `ray>=2.9`."""


def read_project() -> Project:
    """Return version and requirements of the running code, from pyproject.toml in a checkout, else from the installed package's metadata.

    The metadata alone is not enough, because an editable install elsewhere may describe other code. Raises ConfigError.
    """
    root = import_root()
    described = root / "pyproject.toml"
    project = tomllib.loads(described.read_text())["project"] if described.is_file() else {}
    if project.get("name") == NAME:
        return Project(
            version=str(project["version"]),
            requirements=tuple(project["dependencies"]),
            ray=str(project["optional-dependencies"]["ray"][0]),
        )
    try:
        installed = distribution(NAME)
    except PackageNotFoundError:
        raise ConfigError(
            f"{root}: the running code has neither a pyproject.toml beside it nor metadata of an installed {NAME}; "
            f"submit from a checkout or from an environment that {NAME} is installed in"
        ) from None
    stated = [(text.partition(";")[0].strip(), text.partition(";")[2]) for text in installed.requires or ()]
    needed = [text for text, marker in stated if re.search(r"extra\s*==\s*['\"](ray|" + EXTRA + r")['\"]", marker) or "extra" not in marker]
    return Project(
        version=installed.version,
        requirements=tuple(text for text in needed if not _is_ray(text)),
        ray=next(filter(_is_ray, needed)),
    )


def _is_ray(requirement: str) -> bool:
    return re.match(r"ray\b(?!-)", requirement) is not None
