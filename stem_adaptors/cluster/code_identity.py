"""Which code this process runs: version and digest of the sources. Two machines compare these to see whether they run the same code."""

from __future__ import annotations

import socket
from functools import cache

from tokenshards import __version__
from tokenshards.pipeline.code_identity import import_root, sources_digest
from tokenshards.pipeline.errors import ConfigError

__all__ = ["code_identity", "require_code"]


@cache
def code_identity() -> str:
    """Return `VERSION (DIGEST)` of the packages pipeline and stem_adaptors that this process imports."""
    packages = import_root() / "tokenshards"
    return f"{__version__} ({sources_digest(packages / 'pipeline', packages / 'stem_adaptors')})"


def require_code(expected: str) -> None:
    """Raise ConfigError unless this process runs the code of that identity."""
    found = code_identity()
    if found != expected:
        raise ConfigError(
            f"a worker on {socket.gethostname()} runs tokenshards {found}; this terminal runs {expected}. Install the same on every node"
        )
