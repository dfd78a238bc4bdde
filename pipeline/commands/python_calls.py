"""A command as a Python function: the options of a command's dataclass become keyword arguments, with the same names and defaults."""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import Parameter, Signature, cleandoc
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo

from tokenshards.pipeline.commands.options import HIDDEN
from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.words import near_names

__all__ = ["PRESENTATION", "as_function"]

T = TypeVar("T")
R = TypeVar("R")

PRESENTATION = ("as_json", "list_settings")
"""Fields that say what a command prints. A function returns its report."""


def as_function(options: Callable[..., T]) -> Callable[[Callable[[T], R]], Callable[..., R]]:
    """Give a function the fields of the dataclass `options` as parameters. Arguments of the command may be given by place.

    The function is quiet by default. Its docstring gets a list of the options. A list option takes a list, one text, or a mapping for its
    KEY=VALUE pairs; a path may be a `pathlib.Path`, and a dataset may stand in the place of its URL. The function raises ConfigError for a
    value of another type, TypeError for an unknown name.
    """

    def decorate(function: Callable[[T], R]) -> Callable[..., R]:
        hints = get_type_hints(options, include_extras=True)
        kinds = {name: _plain(hint) for name, hint in hints.items()}
        left_out = (*PRESENTATION, *getattr(options, HIDDEN, ()))
        shown = [field for field in fields(options) if field.name not in left_out]  # type: ignore[arg-type]
        by_place = {field.name for field in shown if field.default is MISSING or _is_argument(hints[field.name])}
        # Python wants parameters without a default first, and those that may be given by place before the others.
        shown.sort(key=lambda field: (field.default is not MISSING, field.name not in by_place))
        signature = Signature(
            [
                Parameter(
                    field.name,
                    Parameter.POSITIONAL_OR_KEYWORD if field.name in by_place else Parameter.KEYWORD_ONLY,
                    default=Parameter.empty if field.default is MISSING else _default(field.name, field.default),
                    annotation=kinds[field.name],
                )
                for field in shown
            ],
            return_annotation=get_type_hints(function).get("return", Signature.empty),
        )

        def call(*args: Any, **given: Any) -> R:
            unknown = [name for name in given if name not in signature.parameters]
            if unknown:
                raise TypeError(f"{function.__name__} has no option {unknown[0]!r}{near_names(unknown[0], signature.parameters)}")
            values = signature.bind(*args, **given)
            values.apply_defaults()
            return function(options(**{name: _value(name, value, kinds[name]) for name, value in values.arguments.items()}))

        listed = "\n".join(f"    {field.name}: {_help(hints[field.name])}" for field in shown)
        call.__doc__ = f"{cleandoc(function.__doc__ or '')}\n\nOptions, as those of the command:\n\n{listed}\n"
        call.__name__, call.__qualname__, call.__module__ = function.__name__, function.__qualname__, function.__module__
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


def _default(name: str, value: Any) -> Any:
    return True if name == "quiet" else value


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_argument(hint: Any) -> bool:
    return get_origin(hint) is Annotated and any(isinstance(part, ArgumentInfo) for part in get_args(hint)[1:])


def _help(hint: Any) -> str:
    texts = [part.help for part in get_args(hint)[1:] if getattr(part, "help", None)] if get_origin(hint) is Annotated else []
    return texts[0] if texts else ""


def _value(name: str, value: Any, kind: Any) -> Any:
    """Return the value as the command line would give it. Raises ConfigError for a value of another type."""
    kinds = get_args(kind) or (kind,)
    wanted = {get_origin(one) or one for one in kinds} if get_origin(kind) is not list else {list}
    if value is None and NoneType in wanted:
        return None
    if list in wanted:
        return _texts(name, value)
    if isinstance(value, os.PathLike) and str in wanted:
        return os.fspath(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int in wanted:
        return int(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and str in wanted:
        return str(value)  # options such as `--views 4`, which take words too
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and float in wanted:
        return float(value)
    if isinstance(value, (str, bool)) and type(value) in wanted:
        return value
    if str in wanted and (place := _place(name, value)) is not None:
        return place
    expected = " or ".join("None" if one is NoneType else one.__name__ for one in kinds)
    raise ConfigError(f"{name} is {shorten(value)}, a {type(value).__name__}; expected {expected}")


def _place(name: str, value: Any) -> str | None:
    """Return the URL of a dataset, None for anything else. Raises ConfigError for a dataset that no single URL opens again."""
    from tokenshards.pipeline.shards.dataset import TokenDataset  # loads numpy, which `import tokenshards` does without
    from tokenshards.pipeline.shards.joined import JoinedDataset

    whole = value if isinstance(value, TokenDataset) else getattr(value, "dataset", None)
    if not isinstance(whole, TokenDataset):
        return None
    if whole is not value or isinstance(value, JoinedDataset):
        raise ConfigError(
            f"{name} is {shorten(value)}; expected one whole dataset or its URL, which other processes can open again. Give "
            f"{shorten(whole.store.url)} with options such as fraction= and mix= of `train`, or train on parts in a loop of your own "
            "(tokenshards.build, TokenLoader)"
        )
    return str(whole.store.location)


def _texts(name: str, value: Any) -> list[str]:
    """Return the texts of an option that may be repeated. The values of a mapping become the JSON that the command reads."""
    if isinstance(value, Mapping):
        quoted = name.endswith("_option")  # a store's options are read as JSON; other values are read by the type of their field
        return [f"{key}={one if isinstance(one, str) and not quoted else json.dumps(one)}" for key, one in value.items()]
    if isinstance(value, (str, os.PathLike)):
        return [os.fspath(value)]
    if isinstance(value, Sequence) and all(isinstance(one, (str, os.PathLike, int)) and not isinstance(one, bool) for one in value):
        return [str(one) if isinstance(one, int) else os.fspath(one) for one in value]
    raise ConfigError(f"{name} is {shorten(value)}; expected a list of texts, or a mapping of names to values")
