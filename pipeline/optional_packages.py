"""Packages that only some commands need, each in an extra of pyproject.toml. A missing one is an error of set-up with exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from tokenshards.pipeline.errors import ConfigError

__all__ = ["install_hint", "optional_import", "package_error"]


def install_hint(extra: str = "") -> str:
    """Return the command that adds the packages of an extra: with the folder of a checkout; else by name, which an installed wheel answers.

    No package index has tokenshards. Of a package that is installed already, pip installs what an extra adds, and looks for nothing else.
    """
    root, extras = Path(__file__).resolve().parents[1], f"[{extra}]" if extra else ""
    if (root / "pyproject.toml").exists():
        return f"pip install -e '{root}{extras}'"
    return f"pip install 'tokenshards{extras}'"


@contextmanager
def optional_import(need: str, extra: str = "", *, package: str = "") -> Iterator[None]:
    """Turn the failure of an import inside the block into ConfigError. `need` begins the message, such as `plots need matplotlib`.

    The message ends with the command that installs the extra, or the `package` that is in none.
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:  # torchvision built for another torch raises RuntimeError
        raise package_error(need, error, f"pip install {package}" if package else install_hint(extra)) from error


def package_error(need: str, error: Exception, command: str) -> ConfigError:
    """Return the error for packages that cannot be imported; `command` installs them."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
    if "torchvision::" in reason:
        return ConfigError(
            f"{need}; torchvision was built for another torch than the {version('torch')} of this machine ({reason}). Install "
            "torchvision of the same release and from the same index as torch, or uninstall it"
        )
    return ConfigError(f"{need}, which cannot be imported ({reason}); run: {command}")
