"""Objects that a damaged commit named and a later run replaced: they are kept until the manifest is written, then removed by name.

When `repair` drops the commit of a damaged shard, it records the objects of that commit in `commits/<plan_id>/<shard>.dropped.json`, so
that the run that redoes the shard can remove them. A run never removes an object only because nothing names it; `repair` does, after a day.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict

from tokenshards.pipeline.canonical import known_fields, seal
from tokenshards.pipeline.errors import CorruptObjectError, MissingObjectError
from tokenshards.pipeline.shards.commit import ObjectRef, commit_path
from tokenshards.pipeline.shards.manifest import Manifest, read_sealed
from tokenshards.pipeline.shards.version import FORMAT_VERSION
from tokenshards.pipeline.storage.store import Store

__all__ = ["OBJECT_NAME", "dropped_path", "drop_commit", "is_dropped", "read_dropped", "remove_replaced"]

OBJECT_NAME = re.compile(r"(?:shards|quarantine)/\d{8}-[0-9a-f]{12}\.parquet")
"""Content name of a data or quarantine object."""
_DROPPED_NAME = re.compile(r"commits/[0-9a-f]+/\d{8}\.dropped\.json")


def dropped_path(plan_id: str, shard: int) -> str:
    """Return the path of the record of a dropped commit."""
    return commit_path(plan_id, shard).removesuffix(".json") + ".dropped.json"


def is_dropped(path: str) -> bool:
    """Return whether a path is that of a record of a dropped commit."""
    return _DROPPED_NAME.fullmatch(path) is not None


def drop_commit(store: Store, plan_id: str, shard: int, named: Iterable[ObjectRef]) -> None:
    """Record the objects of a commit, then delete the commit; objects of an earlier record are kept in the record."""
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
    """Return the objects that a record names, [] if it cannot be read; then `repair` removes the objects after a day."""
    try:
        found = read_sealed(store, path)["objects"]
        references = [ObjectRef(**known_fields(ObjectRef, value)) for value in found]
    except (MissingObjectError, CorruptObjectError, KeyError, TypeError, ValueError):
        return []
    return [reference for reference in references if OBJECT_NAME.fullmatch(reference.path)]


def remove_replaced(store: Store, manifest: Manifest, replaced: Iterable[ObjectRef], records: Iterable[str]) -> list[str]:
    """Remove the replaced objects that the manifest does not name, then their records; return the paths of removed objects.

    Call it only after the manifest is written and while no other run is live.
    """
    paths = {reference.path for reference in replaced if OBJECT_NAME.fullmatch(reference.path)}
    for entry in manifest.shards if paths else ():
        paths -= {entry.path, entry.quarantine_path}  # a redone shard may have equal bytes and so the same name
    removed = sorted(path for path in paths if store.info(path) is not None)
    for path in (*removed, *records):
        store.delete(path)
    return removed
