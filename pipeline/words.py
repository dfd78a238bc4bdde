"""Numbers in sentences, and objects in one line."""

from __future__ import annotations

import reprlib
from typing import Any

__all__ = ["counted", "short_repr"]


def counted(count: int, one: str, many: str = "") -> str:
    """Return `1 image`, `2,000 images`. Without `many` the plural ends in s, or in es after an s."""
    return f"{count:,} {one if count == 1 else many or one + ('es' if one.endswith('s') else 's')}"


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
