"""Objects that nothing references: what crashed writers, replaced shards and replaced manifests leave behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.pipeline.ledger.state import DatasetState
from tokenshards.pipeline.shards.commit import Commit
from tokenshards.pipeline.storage.store import TEMPORARY_PREFIX, Store

__all__ = ["find_orphans"]


def find_orphans(store: Store, state: DatasetState, referenced: set[str], min_age_seconds: float) -> Iterator[str]:
    """Yield the objects that no manifest of any generation and no commit names, and that are older than `min_age_seconds`.

    `referenced` holds what the commits and the manifest of an undamaged dataset name. Objects of unknown age stay.
    """
    keep = referenced | _named_by_manifests(state) | _named_by_foreign_commits(store, state)
    limit = time.time() - min_age_seconds
    for info in store.list("", temporary=True):
        if 0 < info.modified_seconds < limit and info.path not in keep and _is_ours(info.path, state):
            yield info.path


def _named_by_manifests(state: DatasetState) -> set[str]:
    named: set[str] = set()
    for manifest in state.manifests:
        named.add(manifest.name)
        objects = [manifest.table, *(entry.data for entry in manifest.shards), *(entry.quarantine for entry in manifest.shards)]
        named |= {reference.path for reference in objects if reference is not None}
    return named


def _named_by_foreign_commits(store: Store, state: DatasetState) -> set[str]:
    """Return what the commits of plans outside the chain name: nobody should have made them, so nothing of theirs is deleted."""
    named: set[str] = set()
    for info in store.list("commits"):
        if info.path.split("/")[1] not in state.plan_ids:
            try:
                commit = Commit.from_bytes(store.read(info.path), info.path)
            except CorruptObjectError:
                continue
            named |= {reference.path for reference in (commit.data, commit.quarantine) if reference is not None}
    return named


def _is_ours(path: str, state: DatasetState) -> bool:
    """True for the kinds of object that this package writes and may leave unreferenced."""
    folder, slash, rest = path.partition("/")
    if path.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
        return True
    if not slash:
        return path.startswith(("manifest-", "shards-"))
    plan_id, inside, _ = rest.partition("/")
    return folder in ("shards", "quarantine") or (folder == "plan" and bool(inside) and plan_id not in state.plan_ids)
