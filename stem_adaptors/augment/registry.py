"""Operations by name: ours, those that a program registers, those of installed packages, any callable by `python("module:callable")`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.named_code import PREFIX, call_named, load_named, offered
from tokenshards.stem_adaptors.augment.mixing import ColorAdapt, CutMix, Mixup
from tokenshards.stem_adaptors.augment.on_embeddings import CentreCrop, DropSites, Noise, RandomCrop, RandomResizedCrop
from tokenshards.stem_adaptors.augment.on_ids import Flip, Swap, Synonyms
from tokenshards.stem_adaptors.augment.operation import Operation
from tokenshards.stem_adaptors.augment.quantise import Quantise
from tokenshards.stem_adaptors.augment.token_adapt import TokenAdapt

__all__ = ["AUGMENTATIONS", "make_operation", "operation_names", "operations_of_callable", "register_augmentation"]

AUGMENTATIONS = "tokenshards.augmentations"
"""Group of entry points for operations: `name = "package.module:callable"`."""

_OWN: dict[str, Callable[..., Operation]] = {
    kind.name: kind
    for kind in (
        Synonyms, Swap, Flip, RandomResizedCrop, RandomCrop, CentreCrop, Noise, ColorAdapt, DropSites, Quantise, CutMix,
        Mixup, TokenAdapt,
    )
}  # fmt: skip
_REGISTERED: dict[str, Callable[..., Operation]] = {}

Maker = TypeVar("Maker", bound=Callable[..., Any])


def register_augmentation(name: str) -> Callable[[Maker], Maker]:
    """Name an operation for `augment.ops`: a subclass of Operation, or a function that returns one. Keyword arguments become its options.

    >>> @tokenshards.register_augmentation("fade")
    ... class Fade(tokenshards.Operation):
    ...     def __init__(self, amount: float = 0.5):
    ...         super().__init__()
    ...         self.amount = amount
    ...     def forward(self, state, numbers):
    ...         return state._replace(x=state.embeddings * (1 - self.amount))

    Raises ConfigError for a name that is no identifier or is taken by an operation of tokenshards.
    """
    if not name.isidentifier() or name in (*_OWN, "one_of", "half_batch", "python"):
        raise ConfigError(f"register_augmentation: the name is {name!r}; expected an identifier that no operation of tokenshards has")

    def register(make: Maker) -> Maker:
        _REGISTERED[name] = make
        return make

    return register


def operation_names() -> list[str]:
    """Return all names, ours first."""
    return [*_OWN, *sorted({*_REGISTERED, *offered(AUGMENTATIONS)} - _OWN.keys())]


def make_operation(name: str, options: dict[str, Any]) -> Operation:
    """Return a new operation. `python:module:callable` names code. Raises ConfigError for an unknown name or options that do not fit."""
    where = f"augment.ops: {name}"
    if name in _OWN or name in _REGISTERED:
        make = _OWN.get(name) or _REGISTERED[name]
    elif name.startswith(PREFIX) or name in offered(AUGMENTATIONS):
        make = load_named(name, AUGMENTATIONS, "augment.ops:")
    else:
        known = ", ".join([*operation_names(), "one_of", "half_batch", "python"])
        raise ConfigError(f"{where}: there is no such operation; expected one of {known}")
    signature = inspect.signature(make)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}; it takes {', '.join(signature.parameters) or 'no options'}") from None
    made = call_named(where, lambda: make(**options))
    if not isinstance(made, Operation):
        raise ConfigError(f"{where}: it makes {shorten(made)}, a {type(made).__name__}; expected a tokenshards.Operation")
    made.name, made.options = made.name or name, options
    if name.startswith(PREFIX):
        made.name = name
    return made


def operations_of_callable(name: str) -> list[Operation]:
    """Return what the callable `python:module:callable` gives without arguments: an operation, or a list of them."""
    made = call_named(f"augment.ops: {name}", load_named(name, AUGMENTATIONS, "augment.ops:"))
    found = list(made) if isinstance(made, (list, tuple)) else [made]
    wrong = [part for part in found if not isinstance(part, Operation)]
    if wrong or not found:
        raise ConfigError(f"augment.ops: {name} returns {shorten(wrong or found)}; expected a tokenshards.Operation or a list of them")
    for part in found:
        part.name = part.name or type(part).__name__
    return found
