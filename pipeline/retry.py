"""`retry-failed`: a new generation made of what the last one quarantined; older shards are never rewritten."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from pipeline.config import PlanConfig, SourceConfig
from pipeline.errors import IncompleteError, MissingObjectError, Reason
from pipeline.plan import Listing, Plan, PlanRequest, load_chain, read_shard_rows, write_plan
from pipeline.records import PlanRow
from pipeline.shards.manifest import Manifest, ShardEntry, load_manifest, load_pointer
from pipeline.shards.reader import ShardReader
from pipeline.shards.writer import read_quarantine
from pipeline.storage import Store

__all__ = ["failed_entries", "plan_retry"]

_CONTAINER_REASONS = {Reason.BAD_CONTAINER, Reason.MISSING, Reason.CHANGED_SINCE_PLAN, Reason.NOT_A_FILE, Reason.TOO_LARGE}


def failed_entries(manifest: Manifest) -> list[ShardEntry]:
    """Return the shards whose quarantine still stands: those of the last generation, which tried again whatever failed before."""
    last = manifest.plan_ids[-1]
    return [entry for entry in manifest.shards if entry.plan_id == last and entry.quarantine_path is not None]


def plan_retry(store: Store, source: Store, config: SourceConfig) -> tuple[Plan, int] | None:
    """Write the plan of the next generation; return it and the number of inputs tried again, None when nothing stands in quarantine.

    A plan that exists already (an interrupted retry) is returned as it is. Raises IncompleteError before the dataset is complete.
    """
    pointer = load_pointer(store)
    chain = load_chain(store)
    if not chain:
        raise MissingObjectError(store.url, "no dataset is here; expected the OUT folder of `tokenshards tokenize`")
    last = chain[-1]
    if pointer is None or int(pointer["generation"]) < last.generation:
        if last.generation == 1 or pointer is None:
            raise IncompleteError(
                f"{store.url} is not complete yet. Finish it with `tokenshards tokenize` before failed inputs are retried"
            )
        return last, last.images_planned + last.tars_planned
    manifest = load_manifest(store, pointer)
    entries = failed_entries(manifest)
    if not entries:
        return None
    rows = _rows_to_retry(store, source, last, entries)
    asked = PlanConfig(shard_rows=last.shard_rows, batch_rows=last.batch_rows, codec=last.codec, order_seed=last.order_seed)
    quarantined = sum(entry.quarantined for entry in entries)
    with Listing(rows, order_seed=last.order_seed, keep_order=False, sample=0, sample_seed=0) as listing:
        request = PlanRequest(
            fingerprint=last.fingerprint,
            config=asked,
            source=last.source,
            tokenizer_objects=last.tokenizer_objects,
            tokenizer_json=last.tokenizer_json,
            classes=manifest.classes,
            generation=last.generation + 1,
            earlier_plans=tuple(plan.plan_id for plan in chain),
            first_shard=last.first_shard + last.shards,
            card={**last.card, "retried": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
            label_type=last.label_type,
            meta_types=last.meta_types,
            matched=(f"{quarantined} quarantined inputs of generation {last.generation}",),
        )
        return write_plan(store, listing, request, config.tars_per_shard), quarantined


def _rows_to_retry(store: Store, source: Store, plan: Plan, entries: list[ShardEntry]) -> Iterator[PlanRow]:
    for entry in entries:
        failed = read_quarantine(store.read(str(entry.quarantine_path)))
        failed_ids = {row["sample_id"] for row in failed}
        committed: frozenset[str] | None = None
        for row in read_shard_rows(store, plan, entry.shard):
            if row.kind == "file":
                if row.sample_id in failed_ids:
                    yield _as_it_is_now(source, row)
                continue
            mine = _failed_of(row, failed)
            if not mine:
                continue
            if any(failure["reason"] in _CONTAINER_REASONS and _is_container(row, failure) for failure in mine):
                committed = _committed_ids(store, entry) if committed is None else committed
                skip = tuple(sorted((*committed, *(row.skip or ()))))
                yield replace(_as_it_is_now(source, row), inputs=-1, only=None, skip=skip)
            else:
                only = tuple(sorted(failure["sample_id"] for failure in mine))
                yield replace(_as_it_is_now(source, row), inputs=len(only), only=only, skip=None)


def _failed_of(row: PlanRow, failed: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the quarantine rows that came from one slice."""
    if row.kind == "tar":
        return [
            failure
            for failure in failed
            if failure["sample_id"].partition("#")[0] == row.sample_id or failure["sample_id"] == row.sample_id
        ]
    found = []
    for failure in failed:
        container, _, number = failure["uri"].rpartition("#")  # tables name the row of the file there
        if container.endswith(row.path) and number.isdigit() and row.row_start <= int(number) < row.row_stop:
            found.append(failure)
    return found


def _is_container(row: PlanRow, failure: dict[str, str]) -> bool:
    """True where one quarantine row of a tar stands for inputs that nobody has counted."""
    return row.kind == "tar" and (failure["sample_id"] == row.sample_id or failure["sample_id"].startswith(f"{row.sample_id}#@"))


def _committed_ids(store: Store, entry: ShardEntry) -> frozenset[str]:
    if entry.path is None:
        return frozenset()
    return frozenset(ShardReader.open(store, entry.path).read_columns(("sample_id",))["sample_id"].to_pylist())


def _as_it_is_now(source: Store, row: PlanRow) -> PlanRow:
    """Return the row with the size and version that its object has today; what is still missing fails again."""
    if "://" in row.path or row.version == "":
        return row
    info = source.info(row.path)
    return row if info is None else replace(row, size=info.size, version=info.version)
