"""URLs of a table with which a worker finds out whether the network works when one host fails (SPEC.md section 6)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from tokenshards.pipeline.errors import FormatError, MissingObjectError, PlanError
from tokenshards.pipeline.planning.plan import Plan, load_plan, read_shard_rows
from tokenshards.pipeline.sources.fetch import urls_to_probe
from tokenshards.pipeline.sources.hosts.failures import host_of
from tokenshards.pipeline.storage.store import Store

__all__ = ["EarlierUrls", "ProbeUrls"]

EARLIER_SHARDS = 4
"""Shards of an earlier plan to look into."""


class EarlierUrls:
    """URLs of the plans before a retry, read only when somebody asks: all URLs of a retry itself have failed once."""

    def __init__(self, out: Store, plan: Plan) -> None:
        self._out = out
        self._plan = plan

    def __iter__(self) -> Iterator[str]:
        for plan_id in reversed(self._plan.earlier_plans):
            with contextlib.suppress(PlanError, FormatError, MissingObjectError):  # a damaged plan is not this worker's business
                earlier = load_plan(self._out, plan_id)
                if earlier is not None:
                    for shard in earlier.shard_numbers[:EARLIER_SHARDS]:
                        yield from urls_to_probe(read_shard_rows(self._out, earlier, shard))


class ProbeUrls:
    """URLs of the rows that are read, and more of the same table. Those of hosts beside the rows' own come first."""

    def __init__(self, own: Sequence[str], more: Iterable[str]) -> None:
        self._own = own
        self._more = more

    def __bool__(self) -> bool:
        return bool(self._own)

    def __iter__(self) -> Iterator[str]:
        more = list(self._more) if self._own else []
        tried, hosts = set(self._own), {host_of(url) for url in self._own}
        yield from (url for url in more if host_of(url) not in hosts)
        yield from (url for url in more if host_of(url) in hosts and url not in tried)
        yield from self._own
