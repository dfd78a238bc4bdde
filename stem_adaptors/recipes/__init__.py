"""Settings of known trainings, for `train --recipe NAME`. The docstring of each module has the command, its cost and what to expect."""

from __future__ import annotations

import os
from pathlib import Path

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.words import near_names

__all__ = ["recipe_file", "recipe_names"]

_HERE = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in _HERE.glob("*.py") if path.stem != "__init__")


def recipe_file(recipe: str) -> str:
    """Return the file of a recipe: of one that comes with the package its bare name was given, of any other its path.

    Raises ConfigError listing the names, where there is neither.
    """
    names = recipe_names()
    if recipe in names:
        return str(_HERE / f"{recipe}.py")
    if os.path.exists(os.path.expanduser(recipe)):
        return os.path.expanduser(recipe)
    raise ConfigError(
        f"--recipe {recipe}: no such recipe and no such file{near_names(recipe, names)}; expected one of {', '.join(names)}, or the path "
        "of a Python file"
    )
