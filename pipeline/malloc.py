"""A malloc setting for processes that allocate large blocks per batch: to fault in fresh pages costs more time than to compute in them."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Make malloc reuse freed large blocks instead of returning them to the system; return False if there is no glibc.

    A higher mmap threshold is not enough: glibc allows at most 32 MiB, and one layer of ViT-VQGAN base needs 100 MiB. In threads other
    than the main one, blocks above 64 MiB (glibc's largest heap) still come from the system.

    The setting holds for the whole process, so only programs call this function, never a library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))
