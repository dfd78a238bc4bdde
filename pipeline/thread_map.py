"""A map in threads whose results come in order, with a bound on those that wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_in_order"]

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int) -> Iterator[R]:
    """Yield `function(item)` in the order of `items`; at most `ahead` results are made before they are asked for.

    An exception ends the iteration at its item. Closing the generator drops what is queued and waits for the calls in flight. After Ctrl-C
    nobody waits for them: in an outage each would be tried for minutes.
    """
    pool, wait = ThreadPoolExecutor(threads), True
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except (KeyboardInterrupt, SystemExit):
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
