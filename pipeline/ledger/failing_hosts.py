"""Which hosts of others the URLs in quarantine name, counted: often a few dead hosts are most of the failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenshards.pipeline.errors import Stage
from tokenshards.pipeline.planning.retry_plan import failed_entries
from tokenshards.pipeline.shards.manifest import Manifest
from tokenshards.pipeline.shards.quarantine_file import quarantine_rows
from tokenshards.pipeline.sources.hosts.failures import host_of
from tokenshards.pipeline.storage.store import Store

__all__ = ["MOST_SHARDS", "FailingHosts", "hosts_in_quarantine"]

SHOWN = 5
MOST_HOSTS = 100_000
"""Hosts to tell apart; a table may name a million."""
MOST_SHARDS = 1_000
"""Quarantine files to read at the end of a run."""


class FailingHosts:
    """Failures by host and reason."""

    def __init__(self) -> None:
        self._reasons: dict[str, Counter[str]] = {}

    def add(self, uri: str, stage: str, reason: str) -> None:
        """Count one quarantined input, if it failed while it was fetched from a URL."""
        if stage == Stage.FETCH and uri.startswith(("http://", "https://")):
            host = host_of(uri)
            if host in self._reasons or len(self._reasons) < MOST_HOSTS:
                self._reasons.setdefault(host, Counter())[reason] += 1

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return the counts of each reason by host, the hosts with most failures first."""
        return {host: dict(reasons.most_common()) for host, reasons in self._most()}

    def describe(self) -> str:
        """Return a line about the hosts with the most failures, "" if there is none."""
        if not self._reasons:
            return ""
        shown = [f"{host} {reasons.total():,} ({_words(reasons)})" for host, reasons in self._most()[:SHOWN]]
        more = len(self._reasons) - len(shown)
        return f"hosts with the most failures: {', '.join(shown)}{f', and {more:,} more' if more else ''}"

    def _most(self) -> list[tuple[str, Counter[str]]]:
        return sorted(self._reasons.items(), key=lambda item: (-item[1].total(), item[0]))


def _words(reasons: Counter[str]) -> str:
    return next(iter(reasons)) if len(reasons) == 1 else ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())


def hosts_in_quarantine(store: Store, manifest: Manifest) -> FailingHosts:
    """Return the failing hosts of the last generation; of a very large quarantine those of its first files."""
    return _counted(row for entry in failed_entries(manifest)[:MOST_SHARDS] for row in _rows(store, entry.quarantine))


def _rows(store: Store, reference: Any) -> Iterable[dict[str, Any]]:
    return () if reference is None else quarantine_rows(store, reference, ("uri", "stage", "reason"))


def _counted(rows: Iterable[dict[str, Any]]) -> FailingHosts:
    found = FailingHosts()
    for row in rows:
        found.add(row["uri"], row["stage"], row["reason"])
    return found
