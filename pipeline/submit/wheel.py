"""The running code as a wheel, for the nodes of a cluster: standard library alone, no build backend, no network, the same bytes each time.

It is made to be unpacked into a folder of the import path, beside the packages that a node has: requirements stand under an extra that
nobody asks for, so that even a plain `pip install --target` fetches nothing; `submit.job_entry` reads them and says what is missing.
The name carries a digest of the code, as a build tag.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tomllib
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tokenshards.pipeline.code_identity import import_root
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.submit.job_entry import EXTRA

__all__ = ["Project", "build_wheel", "read_project"]

NAME = "tokenshards"
PACKAGES = ("pipeline", "stem_adaptors")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNSHIPPED_SUFFIXES = {".pyc", ".pyo", ".orig", ".rej", ".swp"}


@dataclass(frozen=True, kw_only=True)
class Project:
    """What the wheel says of itself, and where its files are."""

    root: Path
    """Folder of `pipeline`, `stem_adaptors` and `cli.py`: a checkout or site-packages."""
    version: str
    requirements: tuple[str, ...]
    """What a node needs to tokenize, without Ray itself."""
    ray: str
    """The requirement on Ray."""


def read_project() -> Project:
    """Return the project that is imported, from its pyproject.toml in a checkout, else from the metadata of the installed package.

    The metadata alone would not do: an editable install elsewhere may describe other code than what runs. Raises ConfigError.
    """
    root = import_root()
    described = root / "pyproject.toml"
    project = tomllib.loads(described.read_text())["project"] if described.is_file() else {}
    if project.get("name") == NAME:
        return Project(
            root=root,
            version=str(project["version"]),
            requirements=tuple(project["dependencies"]),
            ray=str(project["optional-dependencies"]["ray"][0]),
        )
    try:
        installed = distribution(NAME)
    except PackageNotFoundError:
        raise ConfigError(
            f"{root}: the running code has neither a pyproject.toml beside it nor metadata of an installed {NAME}; "
            f"submit from a checkout or from an environment with `pip install {NAME}`"
        ) from None
    stated = [(text.partition(";")[0].strip(), text.partition(";")[2]) for text in installed.requires or ()]
    needed = [text for text, marker in stated if re.search(r"extra\s*==\s*['\"](ray|" + EXTRA + r")['\"]", marker) or "extra" not in marker]
    return Project(
        root=root,
        version=installed.version,
        requirements=tuple(text for text in needed if not _is_ray(text)),
        ray=next(filter(_is_ray, needed)),
    )


def _is_ray(requirement: str) -> bool:
    return re.match(r"ray\b(?!-)", requirement) is not None


def build_wheel(folder: Path, project: Project | None = None) -> Path:
    """Write the wheel into `folder` and return its path. The same code gives the same bytes and the same name. Raises ConfigError."""
    project = project or read_project()
    files = dict(_code(project.root))
    version = project.version.partition("+")[0]  # a local label would have to be escaped in the URL that Ray makes of the name
    info = f"{NAME}-{version}.dist-info"
    stated = [*project.requirements, project.ray]
    requires = "".join(f'Requires-Dist: {text}; extra == "{EXTRA}"\n' for text in stated)
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\nProvides-Extra: {EXTRA}\n{requires}".encode()
    files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{NAME} = tokenshards.cli:run\n".encode()
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{len(name)}:{name}:{len(data)}:".encode() + data)
    build = f"1{digest.hexdigest()[:16]}"  # a build tag begins with a digit
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: {NAME}\nRoot-Is-Purelib: true\nBuild: {build}\nTag: py3-none-any\n".encode()
    files[f"{info}/RECORD"] = _record(files, info)
    path = folder / f"{NAME}-{version}-{build}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.create_system, member.external_attr, member.compress_type = 3, 0o100644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(member, data)
    return path


def _code(root: Path) -> list[tuple[str, bytes]]:
    paths = [root / "cli.py", *(path for package in PACKAGES for path in (root / package).rglob("*"))]
    chosen = [path for path in paths if _is_shipped(path, root)]
    missing = [name for name in ("cli.py", *(f"{package}/__init__.py" for package in PACKAGES)) if root / name not in chosen]
    if missing:
        raise ConfigError(f"{root}: {', '.join(missing)} not found beside the running code; install {NAME} again, whole")
    return [(path.relative_to(root).as_posix(), path.read_bytes()) for path in chosen]


def _is_shipped(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return path.is_file() and not hidden and path.suffix not in _UNSHIPPED_SUFFIXES


def _record(files: dict[str, bytes], info: str) -> bytes:
    lines = []
    for name, data in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    return "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
