"""Memory of a process whose large blocks come and go with every batch: fresh pages cost more than the sums in them."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let malloc hand large blocks out again in place of returning them to the system; False where there is no glibc.

    A threshold for mmap would not do: glibc allows 32 MiB at most, and a layer of ViT-VQGAN base gives 100. In threads other than the
    main one blocks of more than 64 MiB, glibc's largest heap, still come from the system.

    For the whole process, so a program calls it and no library does.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))
