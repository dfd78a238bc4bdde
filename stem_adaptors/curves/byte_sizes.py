"""Sizes that people write, such as `0.1MB`, as bytes, and bytes as such a size."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

from tokenshards.pipeline.errors import ConfigError, shorten

__all__ = ["byte_text", "bytes_of", "sizes_of"]

DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_SIZE = re.compile(r"(\d[\d_]*(?:\.\d+)?|\.\d+)\s*(?:([kmgt]i?)?b)?", re.IGNORECASE)


def sizes_of(option: str, texts: Iterable[str]) -> tuple[int, ...]:
    """Return the sizes of an option that may be repeated and may have commas, each once, the smallest first. Raises ConfigError."""
    return tuple(sorted({bytes_of(option, part) for text in texts for part in text.split(",")}))


def bytes_of(option: str, text: str) -> int:
    """Return the bytes of a text such as `300kB`, `0.1 MB`, `1GiB` or `1_000_000`. Raises ConfigError."""
    found = _SIZE.fullmatch(text.strip())
    unit = (found[2] or "").lower() if found else ""
    count = int(Fraction(found[1].replace("_", "")) * {**DECIMAL, **BINARY}[unit]) if found else 0
    if count < 1:
        raise ConfigError(
            f"{option} has {shorten(text)}; expected sizes of at least a byte with commas between them, such as 300kB,0.1MB,1GiB,1_000_000"
        )
    return count


def byte_text(count: int) -> str:
    """Return up to four digits with a decimal unit, such as `0.3 MB` as `300 kB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.4g} {unit}"
    return f"{count} B"
