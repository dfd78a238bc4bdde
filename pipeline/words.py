"""Numbers in sentences, and objects in one line."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

__all__ = ["counted", "near_names", "short_repr"]


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
