"""`--set PART.FIELD=VALUE`: changes of single fields of the configs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from tokenshards.pipeline.errors import ConfigError, shorten

__all__ = ["with_settings"]


def with_settings(configs: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return the configs with settings such as `augment.noise_prob=0.25` applied; the part names are the keys of `configs`.

    Raises ConfigError for an unknown part or field (the message lists the known ones) and for a value of another type.
    """
    changes: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        part, dot, field_name = name.partition(".")
        if not equals or not dot:
            raise ConfigError(f"--set is {shorten(setting)}; expected PART.FIELD=VALUE, such as augment.noise_prob=0.25")
        if part not in configs:
            raise ConfigError(f"--set {name}: no part {part!r}; expected one of {', '.join(sorted(configs))}")
        known = {field.name: field for field in fields(configs[part])}
        if field_name not in known:
            raise ConfigError(f"--set {name}: {part} has no field {field_name!r}; it has {', '.join(sorted(known))}")
        changes.setdefault(part, {})[field_name] = _parsed(name, text, str(known[field_name].type))
    # The fields of a part together: one of them may only be right beside another one.
    return {part: replace(config, **changes[part]) if part in changes else config for part, config in configs.items()}


def _parsed(name: str, text: str, kind: str) -> Any:
    if kind == "str" or (kind == "str | None" and text != "null"):
        return text
    try:
        value = json.loads(text.lower())
    except ValueError:
        value = text
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and number,
        "float": number,
    }.get(kind.removesuffix(" | None"), False)
    if not fits and not (value is None and kind.endswith("None")):
        raise ConfigError(f"--set {name}: {text!r} is not of type {kind}")
    return value
