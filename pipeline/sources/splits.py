"""Splits that the names of folders and files tell, such as `train/`, `val2017/`, `test-00000-of-00002.parquet`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from functools import lru_cache

from tokenshards.pipeline.errors import SourceError, shorten

__all__ = ["ALL_SPLITS", "asked_split", "in_order", "known_split", "split_at", "split_of_file"]

ALL_SPLITS = "all"
"""As the value of `--split`: take every split, and know that the names are splits and no classes."""
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NEUTRAL = {"data", "file", "files", "image", "images", "img", "imgs", "jpeg", "jpg", "of", "photos", "pictures", "png", "set", "split"}
"""Words beside the split in a folder's name, as in `train_images` or `split=test`; with others, as in `bullet_train`, it is no split."""
_SEPARATORS = re.compile(r"[-_.= ]+")


@lru_cache(maxsize=4096)
def known_split(name: str) -> str | None:
    """Return `train`, `val` or `test` if the name of a folder is that of a split, else None."""
    found = {word for word in _words(name) if word not in _NEUTRAL}
    splits = {_WORDS.get(word) for word in found}
    return splits.pop() if len(splits) == 1 else None


@lru_cache(maxsize=4096)
def split_at(folder: str, asked: str | None = None) -> tuple[str | None, int]:
    """Return the split of a folder path and the place of its name among the path's names; (None, -1) if it has none.

    `asked` is another name that is a split because the user says so.
    """
    for place, name in enumerate(folder.split("/")):
        if (split := known_split(name)) is not None:
            return split, place
        if asked is not None and name.casefold() == asked:
            return asked, place
    return None, -1


def split_of_file(path: str, asked: str | None = None) -> str | None:
    """Return the split of a tar or table: that of a folder, else the only one that a word of its file name tells."""
    folder, _, name = path.rpartition("/")
    if (split := split_at(folder, asked)[0]) is not None:
        return split
    words = set(_words(posixpath.splitext(name)[0]))
    if asked is not None and asked in words:
        return asked
    splits = {_WORDS[word] for word in words & _WORDS.keys()}
    return splits.pop() if len(splits) == 1 else None


def asked_split(split: str | None) -> str | None:
    """Return the name that `--split` means (`validation` is `val`), another word in small letters, None without the option."""
    if split is None:
        return None
    name = split.strip().casefold()
    if not name or "/" in name:
        raise SourceError(f"--split is {shorten(split)}; expected the name of a split, such as train, val or test, or `all`")
    return _WORDS.get(name, name)


def in_order(splits: Iterable[str]) -> list[str]:
    """Return splits in the usual order: train, val, test, then others by name."""
    usual = ("train", "val", "test")
    return sorted(splits, key=lambda split: (usual.index(split) if split in usual else len(usual), split))


def _words(name: str) -> list[str]:
    """Return the words of a name in small letters, without numbers: `train-00000-of-00002` and `train2017` are `train`."""
    words = (word.rstrip("0123456789") for word in _SEPARATORS.split(name.lower()))
    return [word for word in words if word]
