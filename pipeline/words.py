"""Numbers in sentences."""

from __future__ import annotations

__all__ = ["counted"]


def counted(count: int, one: str, many: str = "") -> str:
    """Return `1 image`, `2,000 images`. Without `many` the plural ends in s, or in es after an s."""
    return f"{count:,} {one if count == 1 else many or one + ('es' if one.endswith('s') else 's')}"
