"""The files of `--to`: their endings are checked before the work, and they are written after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.reports.drawings import publish_drawing
from tokenshards.stem_adaptors.reporting.curves import load_pyplot

__all__ = ["Writers", "checked_places", "write_places"]

T = TypeVar("T")
Writers: TypeAlias = Mapping[str, Callable[[T], bytes]]
"""Ending of a file -> its content, made of a result."""


def checked_places(to: Sequence[str] | None, writers: Writers[T]) -> list[Path]:
    """Return the files. Raises ConfigError for an ending that has no writer, and where a package for plots is missing."""
    places = [Path(place) for place in to or ()]
    for place in places:
        if place.suffix.lower() not in writers:
            raise ConfigError(f"--to is {place}; expected a file that ends in {', '.join(writers)}")
        if place.suffix.lower() in (".png", ".html"):
            load_pyplot()
    return places


def write_places(places: Sequence[Path], writers: Writers[T], found: T) -> None:
    """Write a result to each file."""
    for place in places:
        publish_drawing(place, writers[place.suffix.lower()](found))
