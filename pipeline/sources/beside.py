"""Files beside the images, or beside the tars, that may hold labels or images."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Beside", "label_option", "may_describe"]

_CONTAINERS = (".tar", ".tgz", ".parquet", ".arrow", ".feather")
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".parquet", ".arrow", ".feather")
_LIKELY = re.compile("label|annot|class|meta|truth|train", re.IGNORECASE)
_UNLIKELY = re.compile("readme|licen[cs]e|requirements|dataset_info|state[.]json|stats[.]json|submission", re.IGNORECASE)
_DIGITS = re.compile("[0-9]+")
FEW_TABLES = 3
"""More files of one extension are notes to each image, not a table of all."""


def may_describe(name: str) -> bool:
    """Return whether the name of a table does not say that it holds something else than labels."""
    return _UNLIKELY.search(name) is None


def label_option(names: Iterable[str]) -> str:
    """Return the option that takes labels from the first of the tables; of several whose names differ in numbers alone, from all."""
    first, *others = names
    alike = [name for name in others if name.endswith(".parquet")]  # texts of this kind describe an image each
    same = [name for name in alike if _DIGITS.sub("0", name) == _DIGITS.sub("0", first)]
    if not same:
        return f"--label-from file:{first}"
    ending = posixpath.splitext(first)[1]
    return f"--label-from 'file:{posixpath.join(posixpath.dirname(first), '*')}{ending}', and --label COLUMN"


@dataclass(slots=True)
class Beside:
    """Files beside the images that may hold labels or images."""

    tables: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    """Names by extension and depth: many at one depth are notes to each image."""
    tars: int = 0
    containers: int = 0
    container_bytes: int = 0

    def add(self, kind: str, name: str, size: int) -> None:
        """Take a file with its extension."""
        if kind.startswith(_CONTAINERS):
            self.containers += 1
            self.tars += kind.startswith((".tar", ".tgz"))
            self.container_bytes += max(0, size)
        if kind.startswith(_TABLES):
            names = self.tables.setdefault((kind, name.count("/")), [])
            if len(names) <= FEW_TABLES or kind == ".parquet":  # no one writes a Parquet file for each image
                names.append(name)

    def few(self) -> list[str]:
        """Return the tables that may describe the images, the likeliest first."""
        found = [name for (kind, _), names in self.tables.items() if len(names) <= FEW_TABLES or kind == ".parquet" for name in names]
        likely = [(-len(_LIKELY.findall(name)), name.endswith(".txt"), name.count("/"), name) for name in found if may_describe(name)]
        return [name for *_, name in sorted(likely)[:FEW_TABLES]]
