"""The trainings of a comparison in processes of one thread each on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from tokenshards.pipeline.errors import IncompleteError

__all__ = ["end_with_parent", "run_locally"]

R = TypeVar("R")

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_locally(
    train: Callable[[str, dict[str, Any], R], dict[str, Any]],
    out_url: str,
    storage_options: dict[str, Any],
    runs: Sequence[R],
    workers: int,
    done: Callable[[dict[str, Any]], None],
) -> None:
    """Train all runs with `train`, `workers` at a time; `done` gets each result.

    Results are kept as they arrive, so that a stopped comparison goes on.

    Raises IncompleteError where a process was killed, and the errors of a training.
    """
    if not runs:
        return
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # read when a process imports numpy
    try:
        with ProcessPoolExecutor(min(workers, len(runs)), multiprocessing.get_context("spawn"), initializer=end_with_parent) as pool:
            with _without_main(), _deaf_to_ctrl_c():
                waiting = [pool.submit(train, out_url, storage_options, run) for run in runs]
            try:
                for finished in as_completed(waiting):
                    done(finished.result())
            except BrokenProcessPool:
                raise IncompleteError(
                    "a process of a training was killed, perhaps because memory ran out; finished trainings are kept. Run the same command "
                    "again, with fewer --workers"
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list((pool._processes or {}).values()):  # a training takes minutes: nobody waits for it
                    process.terminate()
                raise
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _without_main() -> Iterator[None]:
    """Let no child import the main module: a user's script without `if __name__ == "__main__"` would compare again in each of them."""
    names = vars(sys.modules["__main__"])
    before: dict[str, Any] = {name: names[name] for name in ("__spec__", "__file__") if name in names}
    names.update(dict.fromkeys(before))
    try:
        yield
    finally:
        names.update(before)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Let children ignore Ctrl-C, which reaches the whole group: only this process answers it."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_parent() -> None:
    """End this process when the comparison is killed; without this it would finish its training."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
