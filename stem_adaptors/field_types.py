"""The types of a config's fields, checked when the config is made: a wrong one is a sentence, not an error in the middle of a training."""

from __future__ import annotations

import numbers
import os
from dataclasses import fields
from typing import Any

from tokenshards.pipeline.errors import ConfigError, shorten

__all__ = ["check_types"]

_WORDS = {"int": "a whole number", "float": "a number", "bool": "True or False", "str": "a text", "None": "None"}


def check_types(config: Any) -> None:
    """Raise ConfigError for a field whose value is of another type than its annotation says: int, float, bool, str or None.

    Numbers of NumPy become those of Python, and a path becomes a text.
    """
    for field in fields(config):
        kinds, value = str(field.type).split(" | "), getattr(config, field.name)
        if value is None and "None" in kinds:
            continue
        plain = _plain(value, kinds)
        if plain is None:
            expected = " or ".join(_WORDS[kind] for kind in kinds)
            raise ConfigError(f"{field.name} is {shorten(value)}, of type {type(value).__name__}; expected {expected}")
        if plain is not value:
            object.__setattr__(config, field.name, plain)


def _plain(value: Any, kinds: list[str]) -> Any:
    """Return the value as one of the kinds; None where it is none of them."""
    if isinstance(value, bool):
        return value if "bool" in kinds else None
    if isinstance(value, (int, float, str)) and (type(value).__name__ in kinds or (isinstance(value, int) and "float" in kinds)):
        return value
    if isinstance(value, numbers.Integral) and ("int" in kinds or "float" in kinds):
        return int(value)
    if isinstance(value, numbers.Real) and "float" in kinds and not isinstance(value, float):
        return float(value)
    if isinstance(value, float) and "float" in kinds:  # float64 of NumPy
        return float(value)
    if isinstance(value, os.PathLike) and "str" in kinds:
        return os.fspath(value)
    return None
