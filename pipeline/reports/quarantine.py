"""`quarantine`: the inputs that failed permanently and were not committed later, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tokenshards.pipeline.errors import ConfigError, NotFoundError, Reason
from tokenshards.pipeline.ledger.survey import survey_plan
from tokenshards.pipeline.planning.plan import Plan, load_chain, load_plan
from tokenshards.pipeline.planning.retry_plan import failed_entries, waiting_failures
from tokenshards.pipeline.shards.manifest import ShardEntry, load_manifest, load_pointer
from tokenshards.pipeline.shards.quarantine_file import quarantine_rows
from tokenshards.pipeline.storage.store import Store

__all__ = ["QuarantineCounts", "quarantined_inputs"]

_NAMES = ("sample_id", "reason", "stage", "detail", "uri", "label")


@dataclass(slots=True)
class QuarantineCounts:
    """Inputs by reason, with the first few of each reason."""

    reasons: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, row: dict[str, Any], most: int) -> None:
        """Count one input, and keep it if it is one of the first `most` of its reason."""
        reason = row["reason"]
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < most:
            examples.append(row)

    @property
    def total(self) -> int:
        """Inputs of all reasons."""
        return sum(self.reasons.values())

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield (reason, number, input, detail); reason and number stand beside the first example of a reason."""
        for reason, count in sorted(self.reasons.items(), key=lambda item: (-item[1], item[0])):
            for place, row in enumerate(self.examples[reason]):
                name, number = (reason, f"{count:,}") if place == 0 else ("", "")
                yield name, number, row["sample_id"], row["detail"]


def quarantined_inputs(store: Store, reason: str | None = None, *, with_bytes: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of the current quarantine, for one reason or for all; `with_bytes` adds `data`, the kept bytes of the inputs.

    After `retry-failed` these are the inputs that failed again; the quarantine objects of older generations remain but do not count. While
    a retry is at work, they are those that it has not tried yet and those that failed again. Raises ConfigError for an unknown reason,
    MissingObjectError if there is no dataset.
    """
    reasons = sorted(Reason)
    if reason is not None and reason not in reasons:
        raise ConfigError(f"--reason is {reason!r}; expected one of {', '.join(reasons)}")
    names = (*_NAMES, "data") if with_bytes else _NAMES
    for entry, stands in _standing(store):
        if entry.quarantine is None:
            continue
        for row in quarantine_rows(store, entry.quarantine, names):
            if reason in (None, row["reason"]) and stands(row):
                yield row


_Stands = Callable[[dict[str, Any]], bool]


def _standing(store: Store) -> Iterator[tuple[ShardEntry, _Stands]]:
    """Yield each shard with a quarantine, and which of its rows count."""

    def always(row: dict[str, Any]) -> bool:
        return True

    pointer = load_pointer(store)
    if pointer is None:
        plan = load_plan(store)
        if plan is None:
            raise NotFoundError(store.url, "no dataset is here; expected the OUT folder of `tokenshards tokenize`")
        yield from ((entry, always) for entry in survey_plan(store, plan, plan.spec).done)
        return
    manifest = load_manifest(store, pointer)
    retrying = None if manifest.published else _open_retry(store, manifest.generation)
    if retrying is None:
        yield from ((entry, always) for entry in failed_entries(manifest))
        return
    survey = survey_plan(store, retrying, retrying.spec)
    waits = waiting_failures(store, retrying, survey.to_do)
    for entry in failed_entries(manifest):
        yield entry, waits(entry)
    yield from ((entry, always) for entry in survey.done)


def _open_retry(store: Store, closed: int) -> Plan | None:
    """Return the plan of a retry that has no manifest yet."""
    chain = load_chain(store)
    return chain[-1] if chain and chain[-1].generation > closed else None
