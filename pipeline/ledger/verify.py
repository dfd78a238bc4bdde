"""`verify`: check every state object, every checksum and the account of every planned input; report each damaged object."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import NotFoundError, shorten
from tokenshards.pipeline.ledger.orphans import find_unreferenced
from tokenshards.pipeline.ledger.shard_check import ShardCheck, ShardChecker
from tokenshards.pipeline.ledger.state import DatasetState, read_state
from tokenshards.pipeline.ledger.survey import Problem
from tokenshards.pipeline.shards.commit import ObjectRef
from tokenshards.pipeline.shards.manifest import MANIFEST_POINTER
from tokenshards.pipeline.shards.masks import MaskTotals
from tokenshards.pipeline.storage.object_sizes import object_sizes
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["Verification", "verify_dataset"]

CHUNK_SHARDS = 64


@dataclass(slots=True)
class Verification:
    """Counts and findings of a check."""

    state: DatasetState
    shards_checked: int = 0
    shards_open: int = 0
    """Planned shards that an unfinished job has not made yet."""
    rows_checked: int = 0
    masks: MaskTotals | None = None
    """Counts of the masks of all rows that were checked; None without masks."""
    complete: bool = False
    """True if the newest generation has a readable manifest."""
    problems: list[Problem] = field(default_factory=list)
    bad_shards: dict[int, str] = field(default_factory=dict)
    """Shard -> plan id, for shards with a damaged data, quarantine or commit object; `repair` drops their commits."""
    named_by_bad_shards: dict[int, list[ObjectRef]] = field(default_factory=dict)
    referenced: set[str] = field(default_factory=set)
    """Data and quarantine objects that a commit or the manifest names."""
    unreferenced: list[str] = field(default_factory=list)
    """Unreferenced objects in shards/ of a complete dataset: not damage, but a glob reads them. Empty after a spot check."""

    @property
    def ok(self) -> bool:
        """True if nothing is damaged and the dataset is complete."""
        return not self.problems and self.complete

    @property
    def damaged(self) -> set[str]:
        """The damaged objects; an incomplete dataset is not damaged."""
        return {problem.object for problem in self.problems if problem.kind != "incomplete"}


def verify_dataset(
    store: Store,
    *,
    sample: int | None = None,
    first_shard: int = 0,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Check a dataset; `sample` checks only so many random shards, `first_shard` continues a check that was stopped.

    Calls `on_shard(done, total)` after each shard. Raises NotFoundError if there is nothing to verify, FormatVersionError if a newer
    version wrote the dataset.
    """
    state = read_state(store)
    if not state.plan_ids and not state.pointer_exists:
        raise NotFoundError(store.url, "there is neither a plan nor a manifest; expected the OUT folder of `tokenshards tokenize`")
    found = Verification(state, problems=list(state.problems))
    sizes = object_sizes(store, "shards", "quarantine", "commits")
    tasks = [task for task in _tasks(state, sizes) if task[1] >= first_shard]
    if sample is not None and sample < len(tasks):
        tasks = sorted(random.sample(tasks, sample), key=lambda task: task[1])
    hashes = []
    for done, check in enumerate(_check_shards(store, state, tasks, sizes), 1):
        found.shards_checked += check.exists
        found.shards_open += not check.exists
        found.rows_checked += check.rows
        if check.masks is not None:
            found.masks = (found.masks or MaskTotals(format=check.masks.format)).with_counts(check.masks.images, check.masks.pixels.items())
        found.problems += check.problems
        found.referenced |= {reference.path for reference in check.references}
        if check.problems:
            found.bad_shards[check.shard] = check.plan_id
            found.named_by_bad_shards[check.shard] = check.references
        hashes.append(check.id_hashes)
        on_shard(done, len(tasks))
    _check_unique(hashes, found)
    if sample is None and first_shard == 0:
        _check_masks(found)
    _check_complete(found)
    if found.complete and sample is None and first_shard == 0:
        found.unreferenced = find_unreferenced(store, state, found.referenced, sizes)
    return found


def _tasks(state: DatasetState, sizes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield (plan id, shard) of every shard; for an unreadable plan, take its shards from commits and manifest."""
    for plan_id in state.plan_ids or (state.manifest.plan_ids if state.manifest else ()):
        if plan_id in state.plans:
            yield from ((plan_id, shard) for shard in state.plans[plan_id].shard_numbers)
            continue
        name = re.compile(rf"commits/{plan_id}/(\d{{8}})\.json")
        shards = {int(match[1]) for path in sizes if (match := name.fullmatch(path))}
        shards |= {entry.shard for entry in (state.manifest.shards if state.manifest else ()) if entry.plan_id == plan_id}
        yield from ((plan_id, shard) for shard in sorted(shards))


def _check_shards(store: Store, state: DatasetState, tasks: list[tuple[str, int]], sizes: Mapping[str, int]) -> Iterator[ShardCheck]:
    spec = state.spec
    if spec is None:
        return
    entries = {entry.shard: entry for entry in state.manifest.shards} if state.manifest else {}
    checker = ShardChecker(store=store, spec=spec, sizes=sizes, entries=entries, intact_parts=state.intact_parts)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if store.is_local else 16) as pool:
        work = iter(tasks)
        while chunk := list(islice(work, CHUNK_SHARDS)):  # in chunks, because a finished check holds the id hashes of its shard
            yield from pool.map(lambda task: checker.check(task[0], task[1], state.plans.get(task[0])), chunk)


def _check_unique(hashes: list[npt.NDArray[np.uint64]], found: Verification) -> None:
    everything = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    everything.sort()
    twice = int(np.count_nonzero(everything[1:] == everything[:-1]))
    if twice:
        found.problems.append(Problem("shards/", "duplicate_ids", f"{twice} (sample_id, view) pairs occur more than once"))


def _check_masks(found: Verification) -> None:
    """Compare the masks of all shards with what the manifest says; a damaged shard is told already."""
    manifest = found.state.manifest
    if manifest is None or found.bad_shards or found.shards_open or len(found.state.plan_ids) > manifest.generation:
        return
    empty = manifest.mask is not None and not manifest.mask.images
    if found.masks != manifest.mask and not (empty and (found.masks is None or not found.masks.images)):
        stated, seen = (None if masks is None else masks.to_json() for masks in (manifest.mask, found.masks))
        found.problems.append(Problem(manifest.name, "masks", f"it says {shorten(stated)}; the shards hold {shorten(seen)}"))


def _check_complete(found: Verification) -> None:
    state = found.state
    generations = len(state.plan_ids)
    found.complete = state.manifest is not None and state.manifest.generation >= generations
    if not found.complete and not found.damaged & _manifest_objects(state):
        closed = 0 if state.manifest is None else state.manifest.generation
        detail = (
            f"{closed} of {counted(generations, 'generation is', 'generations are')} "
            "complete; run the same `tokenshards tokenize` again to finish"
        )
        found.problems.append(Problem(MANIFEST_POINTER, "incomplete", detail))


def _manifest_objects(state: DatasetState) -> set[str]:
    return {problem.object for problem in state.problems if problem.object.startswith(("manifest", "shards-"))}
