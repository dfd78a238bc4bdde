"""Preparation of a command's process: threads, memory, workers, runner."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenshards.pipeline.config import RayConfig, RunConfig
    from tokenshards.pipeline.runners.base import Runner

__all__ = ["one_blas_thread", "open_runner", "prepare_for_torch", "worker_count"]


def worker_count(asked: int | None) -> int:
    """Return the requested number of workers, or else the number of cores of this process. Raises ConfigError."""
    from tokenshards.pipeline.config import RunConfig
    from tokenshards.pipeline.runners.local_devices import available_cores

    return RunConfig(workers=asked).workers or available_cores()


def prepare_for_torch() -> None:
    """Call this before torch is imported: torch's idle threads will sleep, and memory is reused from batch to batch.

    Beside other busy processes, spinning threads made training five times slower; fresh pages cost 10 % of a large network's time.
    """
    from tokenshards.pipeline.malloc import keep_freed_memory

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()


def one_blas_thread() -> None:
    """Call this before NumPy is imported, to encode as workers do: more threads are many times slower and change some ids."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def open_runner(name: str, run: RunConfig, cluster: RayConfig) -> Runner:
    """Return the runner with that name; Ray is imported only if it is needed."""
    from tokenshards.pipeline.errors import ConfigError

    if name == "ray":
        from tokenshards.pipeline.runners.ray_driver import RayRunner

        return RayRunner(run, cluster)
    if name != "local":
        raise ConfigError(f"--runner is {name!r}; expected local or ray")
    from tokenshards.pipeline.runners.local import LocalRunner

    return LocalRunner(run)
