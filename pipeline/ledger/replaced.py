"""Objects that a damaged commit named and a later run replaced: kept until the manifest is written, then removed by name.

`repair` drops the commit of a damaged shard; what it named is recorded in `commits/<plan_id>/<shard>.dropped.json`, so that the run that
does the shard again can remove it. Nothing is ever removed because a listing shows it and nothing names it: that is `repair`, after a day.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict

from tokenshards.pipeline.canonical import known_fields, seal
from tokenshards.pipeline.errors import CorruptObjectError, MissingObjectError
from tokenshards.pipeline.shards.commit import ObjectRef, commit_path
from tokenshards.pipeline.shards.manifest import Manifest, read_sealed
from tokenshards.pipeline.shards.schema import FORMAT_VERSION
from tokenshards.pipeline.storage.store import Store

__all__ = ["OBJECT_NAME", "dropped_path", "drop_commit", "is_dropped", "read_dropped", "remove_replaced"]

OBJECT_NAME = re.compile(r"(?:shards|quarantine)/\d{8}-[0-9a-f]{12}\.parquet")
"""Content name of a data or quarantine object."""
_DROPPED_NAME = re.compile(r"commits/[0-9a-f]+/\d{8}\.dropped\.json")


def dropped_path(plan_id: str, shard: int) -> str:
    """Return where the record of what a dropped commit named lies."""
    return commit_path(plan_id, shard).removesuffix(".json") + ".dropped.json"


def is_dropped(path: str) -> bool:
    """Return whether a path is that of such a record."""
    return _DROPPED_NAME.fullmatch(path) is not None


def drop_commit(store: Store, plan_id: str, shard: int, named: Iterable[ObjectRef]) -> None:
    """Delete a commit, after a record of what it named; what an earlier record names stays in it."""
    path = dropped_path(plan_id, shard)
    objects = {reference.path: asdict(reference) for reference in [*read_dropped(store, path), *named]}
    if objects:
        body = {
            "format_version": FORMAT_VERSION,
            "plan_id": plan_id,
            "shard": shard,
            "objects": [objects[name] for name in sorted(objects)],
        }
        store.write(path, seal(body))
    store.delete(commit_path(plan_id, shard))


def read_dropped(store: Store, path: str) -> list[ObjectRef]:
    """Return what a record names, nothing where it cannot be read: then `repair` removes the objects, a day later."""
    try:
        found = read_sealed(store, path)["objects"]
        references = [ObjectRef(**known_fields(ObjectRef, value)) for value in found]
    except (MissingObjectError, CorruptObjectError, KeyError, TypeError, ValueError):
        return []
    return [reference for reference in references if OBJECT_NAME.fullmatch(reference.path)]


def remove_replaced(store: Store, manifest: Manifest, replaced: Iterable[ObjectRef], records: Iterable[str]) -> list[str]:
    """Remove the replaced objects that a manifest does not name, then the records of them; return what was removed.

    Call it only after the manifest is written and while no other run is live.
    """
    paths = {reference.path for reference in replaced if OBJECT_NAME.fullmatch(reference.path)}
    for entry in manifest.shards if paths else ():
        paths -= {entry.path, entry.quarantine_path}  # bytes may have come out equal
    removed = sorted(path for path in paths if store.info(path) is not None)
    for path in (*removed, *records):
        store.delete(path)
    return removed
