"""Numbers in sentences, and objects in one line."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

__all__ = ["counted", "near_names", "same_fields", "short_repr"]


def counted(count: int, one: str, many: str = "") -> str:
    """Return `1 image`, `2,000 images`. Without `many` the plural ends in s, or in es after an s."""
    return f"{count:,} {one if count == 1 else many or one + ('es' if one.endswith('s') else 's')}"


def near_names(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'cat' or 'cats'?)` for up to three names that are spelt alike, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr1(self, x: Any, level: int) -> str:
        if hasattr(x, "dtype") and hasattr(x, "shape"):  # an array of NumPy or a tensor
            return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        return super().repr1(x, level)


_SHORT = _Short()


def short_repr(of: object, /, **fields: Any) -> str:
    """Return `Class(name=value, …)` as a person wants to see it: arrays as type and shape, long lists and texts cut, None left out."""
    shown = ", ".join(f"{name}={_SHORT.repr(value)}" for name, value in fields.items() if value is not None)
    return f"{type(of).__name__}({shown})"


def same_fields(one: Any, other: Any) -> bool:
    """Return whether two objects of one dataclass are equal, arrays and tensors by their content; those have no truth value in `==`."""
    return all(_same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if hasattr(one, "dtype") and hasattr(one, "shape"):
        kinds = [(value.dtype, tuple(value.shape), str(getattr(value, "device", ""))) for value in (one, other)]
        return kinds[0] == kinds[1] and bool((one == other).all())
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
