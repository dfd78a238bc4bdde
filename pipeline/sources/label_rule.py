"""The label of an image by its path: `first`, `parent`, `depth:N`, `none` or `regex:PATTERN`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from tokenshards.pipeline.errors import SourceError

__all__ = ["LabelRule"]


@dataclass(frozen=True, slots=True)
class LabelRule:
    """A rule of --label-from."""

    depth: int | None = None
    pattern: re.Pattern[str] | None = None

    @classmethod
    def parse(cls, text: str) -> LabelRule:
        """Return the rule; raises SourceError."""
        return _parsed(text)

    def label_of(self, path: str) -> str | None:
        """Return the label of a relative path, None if it has none."""
        if self.pattern is not None:
            match = self.pattern.search(path)
            if match is None:
                return None
            return match["label"] if "label" in self.pattern.groupindex else match[1] if self.pattern.groups else match[0]
        folders = path.split("/")[:-1]
        if self.depth is None or not folders:
            return None
        return folders[self.depth] if -len(folders) <= self.depth < len(folders) else None


@lru_cache(16)
def _parsed(text: str) -> LabelRule:
    kind, _, rest = text.partition(":")
    if text in ("first", "parent"):
        return LabelRule(depth=0 if text == "first" else -1)
    if kind == "depth" and rest.isdigit() and int(rest):
        return LabelRule(depth=int(rest) - 1)
    if kind == "regex" and rest:
        try:
            return LabelRule(pattern=re.compile(rest))
        except re.error as error:
            raise SourceError(f"--label-from {text}: the pattern is not valid ({error}); expected one such as regex:([^/]+)_") from None
    if text == "none":
        return LabelRule()
    raise SourceError(f"--label-from is {text}; expected first, parent, depth:N, tar, none, regex:PATTERN or file:TABLE")
