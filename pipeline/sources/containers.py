"""Tars or tables of one source: which of them an asked split takes, and what their names and the listing tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError
from tokenshards.pipeline.sources.base import ImageSource, readable_text
from tokenshards.pipeline.sources.lfs import refuse_lfs_pointers
from tokenshards.pipeline.sources.splits import ALL_SPLITS, asked_split, split_of_file
from tokenshards.pipeline.sources.tables.rows import OTHER_SPLIT
from tokenshards.pipeline.storage.store import ObjectInfo, Store
from tokenshards.pipeline.words import counted

__all__ = ["open_containers"]

OpenFiles = Callable[[Store, SourceConfig, list[ObjectInfo]], ImageSource]


def open_containers(kind: OpenFiles, store: Store, config: SourceConfig, files: list[ObjectInfo]) -> ImageSource:
    """Return the source of the files that the asked split takes; its summary counts splits and archived objects."""
    if config.rules < 3:
        return kind(store, config, files)
    refuse_lfs_pointers(store, files)
    asked = asked_split(config.split)
    splits = [split_of_file(readable_text(info.path), asked) for info in files]
    taken = [asked in (None, ALL_SPLITS, split) for split in splits]
    chosen = [info for info, wanted in zip(files, taken, strict=True) if wanted]
    others = [info for info, wanted in zip(files, taken, strict=True) if not wanted]
    counts = Counter(split for split in splits if split is not None)
    if not counts:  # a column, or the folders inside the tars, may tell the split of each image
        chosen, others = files, []
    if not chosen:
        seen = ", ".join(sorted(counts)) or "none"
        raise SourceError(
            f"{store.url}: none of {counted(len(files), 'file')} "
            f"is of the split {config.split!r}; expected the name of a folder or file (seen: "
            f"{seen}). Leave --split out to take every file"
        )
    source: ImageSource = kind(store, config, chosen)
    source.summary.splits = counts
    for info in others:
        name = readable_text(info.path)
        source.summary.leave_out("of no split" if split_of_file(name, asked) is None else OTHER_SPLIT, name)
    for info in chosen:
        if info.archived:
            source.summary.archived.count += 1
            source.summary.archived.example = source.summary.archived.example or readable_text(info.path)
    return source
