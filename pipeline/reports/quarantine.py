"""`quarantine`: the inputs that failed permanently and were not committed later, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenshards.pipeline.errors import ConfigError, MissingObjectError, Reason
from tokenshards.pipeline.ledger.survey import survey_plan
from tokenshards.pipeline.planning.plan import load_plan
from tokenshards.pipeline.planning.retry_plan import failed_entries
from tokenshards.pipeline.shards.manifest import ShardEntry, load_manifest, load_pointer
from tokenshards.pipeline.shards.writer import read_quarantine
from tokenshards.pipeline.storage.store import Store

__all__ = ["quarantined_inputs"]

_NAMES = ("sample_id", "reason", "stage", "detail", "uri", "label")


def quarantined_inputs(store: Store, reason: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of the current quarantine, for one reason or for all, without the bytes of the inputs.

    After `retry-failed` these are the inputs that failed again; the quarantine objects of older generations remain but do not count. Raises
    ConfigError for an unknown reason, MissingObjectError if there is no dataset.
    """
    reasons = sorted(Reason)
    if reason is not None and reason not in reasons:
        raise ConfigError(f"--reason is {reason!r}; expected one of {', '.join(reasons)}")
    for entry in _standing(store):
        path = str(entry.quarantine_path)
        for row in read_quarantine(store.read(path), path):
            if reason in (None, row["reason"]):
                yield {name: row[name] for name in _NAMES}


def _standing(store: Store) -> list[ShardEntry]:
    pointer = load_pointer(store)
    if pointer is not None:
        return failed_entries(load_manifest(store, pointer))
    plan = load_plan(store)
    if plan is None:
        raise MissingObjectError(store.url, "no dataset is here; expected the OUT folder of `tokenshards tokenize`")
    return [entry for entry in survey_plan(store, plan, plan.spec).done if entry.quarantine_path is not None]
