"""A folder of one dataset per split: `splits.json` names them. The folder itself is no dataset."""

from __future__ import annotations

from tokenshards.pipeline.canonical import seal
from tokenshards.pipeline.errors import ConfigError, MissingObjectError
from tokenshards.pipeline.shards.manifest import read_sealed
from tokenshards.pipeline.storage.store import Store

__all__ = ["SPLIT_INDEX", "read_split_index", "refuse_split_root", "write_split_index"]

SPLIT_INDEX = "splits.json"
_VERSION = "1.1"
"""The format version that began to write this object."""


def read_split_index(store: Store) -> tuple[str, ...]:
    """Return the splits whose datasets are folders of this one, in the order in which they are made; () if it is no such folder."""
    try:
        return tuple(str(name) for name in read_sealed(store, SPLIT_INDEX)["splits"])
    except MissingObjectError:
        return ()


def write_split_index(store: Store, splits: tuple[str, ...]) -> None:
    """Name the splits whose datasets are folders of this one."""
    store.write(SPLIT_INDEX, seal({"format_version": _VERSION, "splits": list(splits)}))


def refuse_split_root(store: Store) -> None:
    """Raise ConfigError, which names the datasets, if this folder holds one dataset per split. Call it where no dataset was found."""
    if splits := read_split_index(store):
        shown = ", ".join(f"{store.url}/{name}" for name in splits)
        raise ConfigError(f"{store.url} holds one dataset per split and is none itself; expected one of {shown}")
