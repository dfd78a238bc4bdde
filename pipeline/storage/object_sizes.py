"""Path and size of every object below some folders, in a few tens of bytes each; a dict of a million paths would take 250 MB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = ["ObjectSizes", "object_sizes"]

CHUNK_OBJECTS = 8192
LONGEST_NAME_BYTES = 128
"""A dict holds longer paths (none of ours is longer), because one long path would lengthen every entry of the array."""


class ObjectSizes(Mapping[str, int]):
    """Path -> size, as sorted arrays."""

    def __init__(self, infos: Iterable[ObjectInfo] = ()) -> None:
        self._others: dict[str, int] = {}
        names: list[npt.NDArray[np.bytes_]] = [np.empty(0, "S1")]
        sizes: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
        infos = iter(infos)
        while chunk := list(islice(infos, CHUNK_OBJECTS)):
            short = [(_name(info.path), info.size) for info in chunk if _fits(info.path)]
            names.append(np.array([name for name, _ in short], np.bytes_))
            sizes.append(np.array([size for _, size in short], np.int64))
            self._others.update((info.path, info.size) for info in chunk if not _fits(info.path))
        unsorted = np.concatenate(names)
        names.clear()
        order = np.argsort(unsorted, kind="stable")
        self._names = unsorted[order]
        self._sizes = np.concatenate(sizes)[order]

    def __getitem__(self, path: str) -> int:
        if not _fits(path):
            return self._others[path]
        name = _name(path)
        if len(name) <= self._names.itemsize:
            place = int(np.searchsorted(self._names, np.bytes_(name)))
            if place < len(self._names) and self._names[place] == name:
                return int(self._sizes[place])
        raise KeyError(path)

    def __iter__(self) -> Iterator[str]:
        for name in self._names:
            yield bytes(name).decode("utf-8", "surrogateescape")
        yield from self._others

    def __len__(self) -> int:
        return len(self._names) + len(self._others)


def _name(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _fits(path: str) -> bool:
    return len(_name(path)) <= LONGEST_NAME_BYTES and not path.endswith("\0")  # NumPy drops zero bytes at the end


def object_sizes(store: Store, *folders: str) -> ObjectSizes:
    """Return path -> size of every object below the folders."""
    return ObjectSizes(info for folder in folders for info in store.list(folder))
