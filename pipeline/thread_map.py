"""A threaded map that yields results in order and bounds how many results wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_in_order"]

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    threads: int,
    ahead: int,
    full: Callable[[Iterable[tuple[T, Future[R]]], T], bool] = lambda pending, item: False,
) -> Generator[R]:
    """Yield `function(item)` in the order of `items`; at most `ahead` results wait for the consumer.

    A new item waits while `full(pending, item)` is true, for example because all of them together need too much memory. An item never
    waits if no other is pending.

    An exception ends the iteration at its item. Closing the generator drops queued items and waits for the calls in flight. After Ctrl-C
    it does not wait: in an outage each call would retry for minutes.
    """
    pool, wait = ThreadPoolExecutor(threads), True
    pending: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            while pending and full(pending, item):
                yield pending.popleft()[1].result()
            pending.append((item, pool.submit(function, item)))
            if len(pending) > ahead:
                yield pending.popleft()[1].result()
        while pending:
            yield pending.popleft()[1].result()
    except (KeyboardInterrupt, SystemExit):
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
