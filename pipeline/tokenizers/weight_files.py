"""One file at any path or URL: its bytes, or a path on this machine that can be mapped into memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tokenshards.pipeline.errors import NotFoundError
from tokenshards.pipeline.storage.store import Store, open_parent

__all__ = ["local_path", "read_file"]


def read_file(url: str, storage_options: Mapping[str, Any] | None, expected: str) -> tuple[bytes, str]:
    """Return the bytes at a path or URL, and the name of their place; MissingObjectError where nothing is."""
    store, name, where = _found(url, storage_options, expected)
    return store.read(name), where


@contextmanager
def local_path(url: str, storage_options: Mapping[str, Any] | None, expected: str) -> Iterator[tuple[str, str]]:
    """Yield a path of this machine with the bytes at `url`, and the name of their place; MissingObjectError where nothing is.

    The bytes of a remote store go into a temporary file, which is deleted at the end: what was mapped from it stays readable.
    """
    store, name, where = _found(url, storage_options, expected)
    if store.is_local:
        yield store.join(name), where
        return
    with tempfile.TemporaryDirectory(prefix="tokenshards-") as folder:
        path = os.path.join(folder, "checkpoint")
        with open(path, "wb") as file:
            file.write(store.read(name))
        yield path, where


def _found(url: str, storage_options: Mapping[str, Any] | None, expected: str) -> tuple[Store, str, str]:
    store, name = open_parent(url, storage_options)
    where = f"{store.url}/{name}"
    info = store.info(name)
    if info is None or not info.regular:
        raise NotFoundError(where, f"{'no file is here' if info is None else 'this is no file'}; expected {expected}. Check the path")
    return store, name, where
