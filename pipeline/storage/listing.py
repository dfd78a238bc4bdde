"""Walk the folders of a store: fetch pages in parallel, yield them one by one, keep only the pages in flight in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Folder", "Page", "walk"]

LIST_THREADS = 16


@dataclass(frozen=True, slots=True)
class Folder:
    """The target of one list request: a folder, or its next page."""

    path: str
    depth: int = 0
    """Depth below the folder where the walk began."""
    deep: bool = False
    """List everything below at once, not folder by folder."""
    token: str | None = None
    """Continuation token from the previous page."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer: objects as fsspec describes them, and further folders or pages to list."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    further: list[Folder] = field(default_factory=list)

    def above(self, levels: int) -> Page:
        """Return the page without folders at depth `levels` or deeper; the other folders will be listed one by one."""
        # A continuation page keeps the mode of its first page.
        return Page(self.entries, [f if f.token else replace(f, deep=False) for f in self.further if f.depth < levels])


def walk(first: Folder, fetch: Callable[[Folder], Page], *, threads: int = LIST_THREADS) -> Iterator[Page]:
    """Yield every page of a tree in any order; `fetch` makes one request and is called from several threads.

    Up to `threads` further requests run while the consumer uses a page. Closing the generator waits for them.
    """
    page = fetch(first)  # without the pool: most walks end after one page
    waiting = page.further[::-1]
    pool = ThreadPoolExecutor(threads, thread_name_prefix="list") if waiting else None
    running: set[Future[Page]] = set()
    pages = [page]
    try:
        while True:
            while pool is not None and waiting and len(running) < threads:
                running.add(pool.submit(fetch, waiting.pop()))
            yield from pages
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            pages = [future.result() for future in done]
            for page in pages:  # last in, first out: depth first keeps the list of waiting folders short
                waiting += page.further[::-1]
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
