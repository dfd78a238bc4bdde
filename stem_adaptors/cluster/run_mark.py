"""A mark in a local run directory. A worker that does not see the mark looks at another disk, where it would begin a second run."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.training.run_writer import MARK_PREFIX

__all__ = ["marked", "require_mark"]


@contextmanager
def marked(out: Store) -> Iterator[str | None]:
    """Put a mark into a local run directory while the context lasts, and yield its name. A URL needs no mark and yields None."""
    if not out.is_local:
        yield None
        return
    mark = f"{MARK_PREFIX}{uuid.uuid4().hex}"
    out.write(mark, b"")
    try:
        yield mark
    finally:
        out.delete(mark)


def require_mark(out: Store, mark: str | None) -> None:
    """Raise ConfigError unless this process sees the mark."""
    if mark is not None and out.info(mark) is None:
        raise ConfigError(
            f"--out {out.url} is another folder on {socket.gethostname()} than on the machine that started the training; expected one that "
            "all nodes share. Give a URL, such as s3://bucket/run, or a folder of a shared file system"
        )
