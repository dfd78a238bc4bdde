"""Pointers that Git LFS left in place of files, named as such: a clone without `git lfs pull` holds nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from tokenshards.pipeline.errors import SourceError, TokenshardsError
from tokenshards.pipeline.images.formats import MAX_LFS_POINTER, is_lfs_pointer
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.base import ImageSource, readable_text
from tokenshards.pipeline.sources.summary import Doubt
from tokenshards.pipeline.storage.store import ObjectInfo, Store, is_absolute
from tokenshards.pipeline.words import counted

__all__ = ["doubt_lfs_pointers", "refuse_lfs_pointers"]

LOOKED_AT = 4
SMALLEST = 60
_PULL = "`git lfs pull` in that clone fetches the files"


def refuse_lfs_pointers(store: Store, files: Sequence[ObjectInfo]) -> None:
    """Raise SourceError if tars or tables are pointers; only files as small as those are read."""
    small = [info for info in files if SMALLEST <= info.size <= MAX_LFS_POINTER and info.regular]
    for info in small[:LOOKED_AT]:
        if _is_pointer(store, info.path):
            as_small = f"{len(small)} of {counted(len(files), 'file is', 'files are')} as small"
            raise SourceError(
                f"{store.place(info.path)} is a Git LFS pointer of {info.size} bytes, not the file itself ({as_small}): {_PULL}"
            )


def doubt_lfs_pointers(source: ImageSource, rows: Sequence[PlanRow]) -> None:
    """Add a doubt to the summary of a listed source if files of some of the rows are pointers."""
    small = [row for row in rows if row.kind == "file" and SMALLEST <= row.size <= MAX_LFS_POINTER and not is_absolute(row.path)]
    found = [row for row in small[:LOOKED_AT] if _is_pointer(source.store, row.path)]
    if found:
        as_small = f"{len(small)} of {len(rows)} sampled files are as small"
        name = readable_text(found[0].path)
        source.summary.doubts.append(Doubt(sentence=f"{name} is a Git LFS pointer, not an image; {as_small}", option=_PULL))


def _is_pointer(store: Store, path: str) -> bool:
    try:
        return is_lfs_pointer(store.read(path))
    except TokenshardsError:  # the run says what it cannot read
        return False
