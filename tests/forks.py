"""Processes of a test that fork from one which has imported what a training imports: torch alone takes seconds of each."""

from __future__ import annotations

import os
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext

__all__ = ["fork_context"]

SLOW_IMPORTS = ("torch._dynamo", "matplotlib.pyplot")
"""What torch's optimisers and a run's curves import when they are first used."""


def fork_context(module: str) -> ForkServerContext:
    """Return a context for processes whose target lives in `module`.

    They fork from a process of one thread: a lock that another thread holds would stay locked in them. Arrow's allocator starts a thread
    when it is imported, unless told not to.
    """
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    context = get_context("forkserver")
    context.set_forkserver_preload([*SLOW_IMPORTS, "tokenshards.stem_adaptors.commands.train", module])
    return context
