"""Say what was understood of an input, and stop before any work where that is in grave doubt."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.records import Label
from tokenshards.pipeline.sources import ImageSource
from tokenshards.pipeline.sources.doubts import add_doubts, new_classes, refuse_grave

__all__ = ["understand"]


def understand(source: ImageSource, asked: SourceConfig, say: Callable[[str], None], classes: Iterable[Label] = ()) -> list[str]:
    """Add the doubts to the summary of a listed source, say all of it as lines of one table, and return the lines.

    Raises DoubtError for a grave doubt, after the table, unless --yes settles it. `asked` is what the user gave.
    `classes` is the class table that the dataset inherits.
    """
    rule = source.config.label_from
    add_doubts(source.summary, asked, from_paths=source.kind == "folder" or (rule is not None and not rule.startswith("file:")))
    if (doubt := new_classes(source.summary, classes)) is not None:
        source.summary.doubts.append(doubt)
    rows = [("source", f"{source.kind} {source.root}"), *source.summary.table()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    for line in lines:
        say(line)
    refuse_grave(source.summary, asked)
    return lines
