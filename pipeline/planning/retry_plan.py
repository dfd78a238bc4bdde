"""`retry-failed`: plan a new generation from the quarantined inputs of the last one; older shards are never rewritten."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import IncompleteError, NotFoundError, PlanError
from tokenshards.pipeline.planning.plan import Plan, load_chain, read_shard_rows
from tokenshards.pipeline.planning.planner import Listing, PlanRequest, write_plan
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.shards.commit import Commit, read_commit
from tokenshards.pipeline.shards.manifest import Manifest, ShardEntry, load_manifest, load_pointer
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.writer import read_quarantine
from tokenshards.pipeline.sources.base import readable_text
from tokenshards.pipeline.sources.mask_folder import mask_store
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["failed_entries", "plan_retry", "rows_to_retry", "waiting_failures"]

STAT_THREADS = 16


def failed_entries(manifest: Manifest) -> list[ShardEntry]:
    """Return the shards whose quarantine is current: those of the last generation, because it retried all earlier failures."""
    last = manifest.plan_ids[-1]
    return [entry for entry in manifest.shards if entry.plan_id == last and entry.quarantine_path is not None]


def plan_retry(store: Store, source: Store, config: SourceConfig) -> tuple[Plan, int] | None:
    """Write the plan of the next generation; return it and its number of inputs, or None if the quarantine is empty.

    If an interrupted retry left a plan, that plan is returned. Raises IncompleteError if the dataset is not complete yet.
    """
    pointer = load_pointer(store)
    chain = load_chain(store)
    if not chain:
        raise NotFoundError(store.url, "no dataset is here; expected the OUT folder of `tokenshards tokenize`")
    last = chain[-1]
    last.refuse_newer()
    if last.is_import:
        raise PlanError(
            f"{store.url} holds tokens imported from {last.source['url']}: the same bytes would fail again. "
            f"Import an intact copy into another output with `tokenshards import {last.source['kind']}`"
        )
    if pointer is None or int(pointer["generation"]) < last.generation:
        if last.generation == 1 or pointer is None:
            raise IncompleteError(
                f"{store.url} is not complete yet, and only a complete dataset can retry its failed inputs. First run the same "
                "`tokenshards tokenize` again until it ends; if it stops with exit code 5, add the larger --max-bad that it names. "
                f"Then run `tokenshards retry-failed {store.url}`"
            )
        return last, last.images_planned + last.tars_planned
    manifest = load_manifest(store, pointer)
    failed = failed_entries(manifest)
    quarantined = sum(entry.quarantined for entry in failed)
    if not quarantined:
        return None
    rows = rows_to_retry(store, source, last, [entry.shard for entry in failed], mask_store(source, config.masks))
    settings: dict[str, Any] = {"order_seed": last.order_seed, "keep_order": False, "sample": 0, "sample_seed": 0}
    with Listing(rows, **settings, mask_files=last.has_mask_files) as listing:
        request = PlanRequest(
            fingerprint=last.fingerprint,
            config=last.config,
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
            mask=last.mask,
            matched=(f"{counted(quarantined, 'quarantined input')} of generation {last.generation}",),
            format_version=last.format_version,
        )
        return write_plan(store, listing, request, config.tars_per_shard), quarantined


def rows_to_retry(store: Store, source: Store, plan: Plan, shards: Iterable[int], masks: Store | None = None) -> Iterator[PlanRow]:
    """Yield a plan row, with current size and version, for each quarantined input or slice of these shards.

    Files are planned one by one, and table rows by their number. A tar is read again as a whole, because only reading shows its samples,
    but its committed samples are skipped. `masks` is the store of a folder of masks. Raises PlanError if a failed input belongs to no
    planned row.
    """
    with ThreadPoolExecutor(1 if source.is_local else STAT_THREADS) as pool:
        for shard in shards:
            commit, _ = read_commit(store, plan.plan_id, shard)
            if commit.quarantine is not None:
                yield from pool.map(lambda row: _as_it_is_now(source, row, masks), _rows_of_shard(store, plan, commit))


def waiting_failures(store: Store, retry: Plan, to_do: Iterable[int]) -> Callable[[ShardEntry], Callable[[dict[str, Any]], bool]]:
    """Return which quarantine rows of an older shard still wait for their retry, because their shard of the plan `retry` is not done."""
    files: set[str] = set()
    places: set[str] = set()
    for shard in to_do:
        for row in read_shard_rows(store, retry, shard):
            path = readable_text(row.path)
            if row.kind == "file":
                files.add(row.sample_id)
            elif row.only is None:
                places.add(path)
            else:
                places.update(f"{path}#{name.rpartition('#')[2]}" for name in row.only)

    def of_shard(entry: ShardEntry) -> Callable[[dict[str, Any]], bool]:
        source = str(read_commit(store, entry.plan_id, entry.shard)[0].made_by["source"])
        return lambda failure: failure["sample_id"] in files or str(failure["uri"]).removeprefix(source) in places

    return of_shard


def _rows_of_shard(store: Store, plan: Plan, commit: Commit) -> Iterator[PlanRow]:
    path = commit.quarantine.path if commit.quarantine else ""
    failures = read_quarantine(store.read(path), path)
    by_id = Counter(failure["sample_id"] for failure in failures)
    committed = _committed_ids(store, commit)
    claimed = 0
    for row in read_shard_rows(store, plan, commit.shard):
        uri = f"{commit.made_by['source']}{readable_text(row.path)}"
        if row.kind == "file" and by_id[row.sample_id]:  # if several rows share an id, one was committed and the others failed
            by_id[row.sample_id] -= 1
            claimed += 1
            yield replace(row, skip=(row.sample_id,) if row.sample_id in committed else row.skip)
        elif row.kind == "rows" and (numbers := _failed_rows(row, uri, failures)):
            claimed += len(numbers)
            name = row.sample_id.rpartition("#")[0]
            yield replace(row, inputs=len(numbers), only=tuple(f"{name}#{number}" for number in numbers))
        elif row.kind == "tar" and (failed := sum(failure["uri"] == uri for failure in failures)):
            claimed += failed
            given = {sample_id for sample_id in committed if sample_id.startswith(f"{row.sample_id}#")}
            yield replace(row, inputs=-1, skip=tuple(sorted(given.union(row.skip or ()))))
    if claimed != len(failures):
        raise PlanError(
            f"{store.url}/{path}: {counted(len(failures), 'input is', 'inputs are')} "
            f"quarantined, but only {claimed} are in the plan of shard {commit.shard}. "
            f"Run `tokenshards verify {store.url}`"
        )


def _failed_rows(row: PlanRow, uri: str, failures: list[dict[str, Any]]) -> list[int]:
    """Return the row numbers of a slice that failed; in a table's uris the number stands after the `#`."""
    parts = (failure["uri"].rpartition("#") for failure in failures)
    numbers = (int(number) for container, _, number in parts if container == uri and number.isdigit())
    return sorted(number for number in numbers if row.row_start <= number < row.row_stop)


def _committed_ids(store: Store, commit: Commit) -> frozenset[str]:
    if commit.data is None:
        return frozenset()
    return frozenset(ShardReader.open(store, commit.data.path).read_columns(("sample_id",))["sample_id"].to_pylist())


def _as_it_is_now(source: Store, row: PlanRow, masks: Store | None) -> PlanRow:
    """Return the row with the current size and version of its object and its mask; a missing one will fail again."""
    info = None if row.version == "" else source.info(row.path)  # URIs of a table have no planned version
    row = row if info is None else replace(row, size=info.size, version=info.version)
    mask = None if masks is None or row.mask_path is None else masks.info(row.mask_path)
    return row if mask is None else replace(row, mask_size=mask.size, mask_version=mask.version)
