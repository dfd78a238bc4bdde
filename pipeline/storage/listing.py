"""Walking the folders of a store: pages fetched in parallel, handed over one by one, no more in memory than are in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Folder", "Page", "walk"]

LIST_THREADS = 16


@dataclass(frozen=True, slots=True)
class Folder:
    """What one request lists: a folder, or the next page of one."""

    path: str
    depth: int = 0
    """Folders between the place where the walk began and this one."""
    deep: bool = False
    """List everything below at once, not folder by folder."""
    token: str | None = None
    """Where the page before ended."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer: objects, as fsspec describes them, and what is still to be listed because of it."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    further: list[Folder] = field(default_factory=list)

    def above(self, levels: int) -> Page:
        """Return the page without folders that lie `levels` or more below the first one; the others are to be listed one by one."""
        # The next page of a listing goes on as that began.
        return Page(self.entries, [f if f.token else replace(f, deep=False) for f in self.further if f.depth < levels])


def walk(first: Folder, fetch: Callable[[Folder], Page], *, threads: int = LIST_THREADS) -> Iterator[Page]:
    """Yield every page of a tree, in no promised order; `fetch` makes one request and is called from several threads.

    The next requests are on their way while a page is used, `threads` of them at most. Closing the generator waits for those.
    """
    page = fetch(first)  # here: most walks are over after one page
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
            for page in pages:  # last in, first out: depth first, which keeps what waits short
                waiting += page.further[::-1]
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
