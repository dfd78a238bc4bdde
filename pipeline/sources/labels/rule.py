"""How a label is made from the path of an image: the values of `--label-from`."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from tokenshards.pipeline.errors import ConfigError, shorten

__all__ = ["LabelRule"]

_EXPECTED = "first, parent, depth:N, tar, none, regex:PATTERN or file:TABLE"
_ORDINALS = ("first", "second", "third")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRule:
    """One value of `--label-from`, parsed."""

    kind: str
    """`first`, `parent`, `depth`, `tar`, `none`, `regex` or `file`."""
    depth: int = 0
    pattern: re.Pattern[str] | None = None
    table: str = ""
    """Path of the table of `file:TABLE`: below the source, or a URL or absolute path."""

    @classmethod
    def parse(cls, text: str | None) -> LabelRule:
        """Return the rule of `--label-from`, the first folder without the option. Raises ConfigError."""
        if text is None:
            return cls(kind="first")
        kind, colon, value = text.partition(":")
        if kind in ("first", "parent", "tar", "none") and not colon:
            return cls(kind=kind)
        if kind == "depth" and value.isascii() and value.isdigit() and int(value) > 0:
            return cls(kind=kind, depth=int(value))
        if kind == "file" and value:
            return cls(kind=kind, table=value)
        if kind == "regex" and value:
            return cls(kind=kind, pattern=_compiled(value))
        such = "; depth:1 is the first folder" if kind == "depth" else ""
        raise ConfigError(f"--label-from is {shorten(text)}; expected {_EXPECTED}{such}")

    @property
    def of_folders(self) -> bool:
        """Whether all files of a folder have one label, which the folder's path alone decides."""
        return self.kind in ("first", "parent", "depth", "none")

    @property
    def of_path(self) -> bool:
        """Whether the path alone decides the label: not the name of the tar, nor a table."""
        return self.of_folders or self.kind == "regex"

    def sentence(self, below: str = "") -> str:
        """Return the rule as the end of a sentence; `below` says where the folders are counted from."""
        if self.kind == "regex" and self.pattern is not None:
            return f"what {shorten(self.pattern.pattern)} finds in the path"
        if self.kind == "depth":
            which = _ORDINALS[self.depth - 1] if self.depth <= len(_ORDINALS) else f"{self.depth}th"
            return f"the {which} folder of the path{below}"
        return {
            "first": f"the first folder of the path{below}",
            "parent": "the folder that holds the image",
            "tar": "the name of the tar",
            "none": "none",
            "file": f"the table {shorten(self.table)}, joined by name",
        }[self.kind]

    def label_of(self, path: str, split_place: int = -1) -> str | None:
        """Return the label of a relative path, None if the rule finds none.

        Where the name of a split is one of the path's folders, at `split_place`, folders are counted below it, or, if there are none
        below, among those above it. Raises ValueError for a rule that is not of the path.
        """
        if not self.of_path:
            raise ValueError(f"the rule {self.kind} does not take a label from a path")
        if self.kind == "regex":
            return self._found(path)
        if self.kind == "none":
            return None
        folders = path.split("/")[:-1]
        if split_place >= 0:
            folders = folders[split_place + 1 :] or folders[:split_place]
        place = {"first": 0, "parent": len(folders) - 1, "depth": self.depth - 1}[self.kind]
        return folders[place] or None if 0 <= place < len(folders) else None

    def label_of_tar(self, path: str) -> str:
        """Return the label that the path of a tar gives all its images: its file name without extensions."""
        name = posixpath.basename(path)
        return name.partition(".")[0] or name

    def _found(self, path: str) -> str | None:
        found = self.pattern.search(path) if self.pattern is not None else None
        if found is None:
            return None
        return found["label" if "label" in found.re.groupindex else 1] or None


def _compiled(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"--label-from {shorten(f'regex:{text}')} is not a pattern of Python's re ({error})") from None
    if not pattern.groups:
        raise ConfigError(
            f"--label-from {shorten(f'regex:{text}')} has no group; expected one around the label, such as regex:^(?P<label>[^_]+)_[0-9]+"
        )
    return pattern
