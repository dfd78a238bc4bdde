"""Unreferenced objects: remains of crashed writers, replaced shards and replaced manifests."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator

from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.pipeline.ledger.replaced import OBJECT_NAME
from tokenshards.pipeline.ledger.state import DatasetState
from tokenshards.pipeline.shards.commit import Commit
from tokenshards.pipeline.storage.store import TEMPORARY_PREFIX, Store

__all__ = ["find_orphans", "find_unreferenced", "foreign_files"]

_ROOT_NAME = re.compile(r"(?:manifest-[0-9a-f]{12}\.json|shards-[0-9a-f]{12}\.parquet)")
_PLAN_NAME = re.compile(r"plan/([0-9a-f]+)/(?:plan\.json|plan\.copy\.json|part-\d{5,}\.parquet)")


def find_orphans(store: Store, state: DatasetState, referenced: set[str], min_age_seconds: float) -> Iterator[str]:
    """Yield the objects older than `min_age_seconds` that no manifest of any generation and no commit names.

    `referenced` holds the objects that the commits and the manifest of an undamaged dataset name. Objects of unknown age are kept, and so
    are objects with other names than ours, because somebody else put them there.
    """
    keep = _named(store, state, referenced)
    limit = time.time() - min_age_seconds
    for info in store.list("", temporary=True):
        if 0 < info.modified_seconds < limit and info.path not in keep and _is_ours(info.path, state):
            yield info.path


def find_unreferenced(store: Store, state: DatasetState, referenced: set[str], listed: Iterable[str]) -> list[str]:
    """Return the listed objects of shards/ that nothing names, although a glob over shards/ reads their rows."""
    unnamed = [path for path in listed if path.startswith("shards/") and path not in referenced]
    keep = _named(store, state, referenced) if unnamed else set()
    return sorted(path for path in unnamed if path not in keep)


def foreign_files(store: Store) -> Iterator[str]:
    """Yield the files of shards/ and quarantine/ that do not have a content name of ours."""
    for folder in ("shards", "quarantine"):
        yield from (info.path for info in store.list(folder) if not OBJECT_NAME.fullmatch(info.path))


def _named(store: Store, state: DatasetState, referenced: set[str]) -> set[str]:
    return referenced | _named_by_manifests(state) | _named_by_foreign_commits(store, state)


def _named_by_manifests(state: DatasetState) -> set[str]:
    named: set[str] = set()
    for manifest in state.manifests:
        named.add(manifest.name)
        objects = [manifest.table, *(entry.data for entry in manifest.shards), *(entry.quarantine for entry in manifest.shards)]
        named |= {reference.path for reference in objects if reference is not None}
    return named


def _named_by_foreign_commits(store: Store, state: DatasetState) -> set[str]:
    """Return the objects that commits of plans outside the chain name. Such commits should not exist, so their objects are kept."""
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
    """Return whether the name is one of ours, of a kind that this package may leave unreferenced."""
    if path.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
        return True
    planned = _PLAN_NAME.fullmatch(path)
    if planned is not None:
        return planned[1] not in state.plan_ids
    return OBJECT_NAME.fullmatch(path) is not None or _ROOT_NAME.fullmatch(path) is not None
