"""Code that users write, named `python:package.module:callable`, or offered by an installed package as an entry point.

Whoever names a callable in a command or a config runs it. A file that names one, such as run.json, may come from elsewhere: it is followed
only where $TOKENSHARDS_ALLOW_PYTHON names the callable, its module or a package above it. An entry point needs no permission, because
somebody installed it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenshards.pipeline.errors import ConfigError, TokenshardsError, shorten

__all__ = ["ALLOW_PYTHON", "PREFIX", "call_named", "check_target", "load_named", "names_code", "offered", "reason_of", "require_allowed"]

ALLOW_PYTHON = "TOKENSHARDS_ALLOW_PYTHON"
"""Environment variable: callables, modules or packages that a file may name, with commas between them."""
PREFIX = "python:"
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@cache
def offered(group: str) -> dict[str, str]:
    """Return the names that installed packages offer in a group of entry points, with their targets. Runs none of their code."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=group)}


def names_code(name: str, group: str) -> bool:
    """Return whether a name stands for code of a user or of an installed package."""
    return name.startswith(PREFIX) or name in offered(group)


def load_named(name: str, group: str, option: str) -> Callable[..., Any]:
    """Import and return the callable that `name` stands for. Raises ConfigError, which begins with the option and the name."""
    target = name.removeprefix(PREFIX) if name.startswith(PREFIX) else offered(group)[name]
    check_target(target, ConfigError)
    module, _, attribute = target.partition(":")
    where = f"{option} {name}"
    try:
        found: Callable[..., Any] | None = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # a user's module may raise anything
        absent = isinstance(error, ModuleNotFoundError) and error.name is not None and f"{module}.".startswith(f"{error.name}.")
        advice = "; expected it in a folder of PYTHONPATH, or installed. On a cluster it must be on every node" if absent else ""
        raise ConfigError(f"{where}: importing {module} raised {reason_of(error)}{advice}") from error
    if not callable(found):
        raise ConfigError(f"{where}: {module} has no callable {attribute}, but {shorten(found)}; expected a function or a class")
    return found


def call_named(where: str, function: Callable[[], Any]) -> Any:
    """Return the result of a user's function. ConfigError names the place in the user's code where it failed."""
    try:
        return function()
    except TokenshardsError:
        raise
    except Exception as error:
        raise ConfigError(f"{where} raised {reason_of(error)}") from error


def check_target(target: str, kind: type[TokenshardsError]) -> None:
    """Raise an error of that kind unless the target has the form `package.module:callable`."""
    if not _TARGET.fullmatch(target):
        raise kind(f"{shorten(PREFIX + target)} names no callable; expected python:package.module:callable")


def require_allowed(target: str, what: str, kind: type[TokenshardsError]) -> None:
    """Raise an error of that kind unless the variable names the callable, its module, or a package above it."""
    allowed = os.environ.get(ALLOW_PYTHON, "")
    if not any(target == name or target.startswith((f"{name}.", f"{name}:")) for name in re.split(r"[\s,]+", allowed) if name):
        seen = f"is {shorten(allowed)}" if allowed else "is not set"
        raise kind(
            f"{what} runs Python code that is installed here, {target}, and {ALLOW_PYTHON} {seen}; expected a list with that "
            f"callable, its module or its package. Where you trust it: export {ALLOW_PYTHON}={target}"
        )


def reason_of(error: Exception) -> str:
    """Return the type and message of an error of a user's code, with the file and line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if last.filename.startswith(str(Path(__file__).parent)) else f", at {Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__}: {shorten(str(error), 200)}{place}"
