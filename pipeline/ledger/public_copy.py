"""`publish`: a copy of a finished data set for other people. It has the objects of the manifest and a card, and no trace of its making.

The copy has no plan, no commits, no runs and no quarantine, so it contains no hosts, no process ids, no place of the source and no bytes of
broken images. Its manifest has the field `published` (format 1.1), so that `verify` checks the objects only against the shard table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, IncompleteError
from tokenshards.pipeline.ledger.dataset_card import write_card
from tokenshards.pipeline.planning.nesting import refuse_nested_stores
from tokenshards.pipeline.planning.plan import CURRENT_PLAN
from tokenshards.pipeline.shards.commit import ObjectRef
from tokenshards.pipeline.shards.manifest import UNTAKEN_TOTALS, Manifest, load_manifest, load_pointer, publish_manifest
from tokenshards.pipeline.shards.shard_table import ShardEntry, ShardTable
from tokenshards.pipeline.shards.split_index import refuse_split_root
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.thread_map import map_in_order

__all__ = ["PublicCopy", "publish_dataset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicCopy:
    """Counts and place of a published copy."""

    url: str
    images: int
    shards: int
    bytes_shards: int
    copied: int
    """Shards copied now; the others exist from an earlier, interrupted attempt."""
    card: bool
    """False if the destination has a README.md that is not ours."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}


def publish_dataset(store: Store, to: Store, on_shard: Callable[[int, int], None] = lambda done, total: None) -> PublicCopy:
    """Copy a finished data set to an empty place; a second run continues an interrupted copy.

    Checks every object against its checksum before it is written. Raises IncompleteError for a data set without a manifest,
    CorruptObjectError for a damaged object, ConfigError if the place holds another data set or is inside this one.
    """
    pointer = load_pointer(store)
    if pointer is None:
        refuse_split_root(store)
        raise IncompleteError(f"{store.url} has no manifest, so it is not complete. Finish it with `tokenshards tokenize`, then publish it")
    manifest = load_manifest(store, pointer)
    refuse_nested_stores(store, to)
    public = _public_manifest(manifest)
    _refuse_other_dataset(to, public)
    for path, sha256 in manifest.tokenizer_objects.items():
        to.write(path, _checked(store, path, sha256))
    copied = 0
    shards = (reference for entry in public.shards if (reference := entry.data) is not None)
    threads = min(8, os.cpu_count() or 1) if store.is_local and to.is_local else 16
    for done, new in enumerate(map_in_order(lambda reference: _copy(store, to, reference), shards, threads=threads, ahead=threads), 1):
        copied += new
        on_shard(done, len(public.shards))
    wrote_card = write_card(to, public)
    publish_manifest(to, public)
    return PublicCopy(
        url=to.url,
        images=int(public.totals["images_committed"]),
        shards=len(public.shards),
        bytes_shards=int(public.totals["bytes_shards"]),
        copied=copied,
        card=wrote_card,
    )


def _public_manifest(manifest: Manifest) -> Manifest:
    images = manifest.totals["images_committed"]
    shards = ShardTable(_public_entries(manifest))
    card = {name: _last_name(str(value)) if name == "source" else value for name, value in manifest.card.items()}
    changes = {"images_planned": images, "images_quarantined": 0, "quarantine_reasons": {}, "shards": len(shards), "seconds": {}}
    kept = {name: value for name, value in manifest.totals.items() if name not in UNTAKEN_TOTALS}
    totals = {**kept, **changes}
    return replace(manifest, generation=1, parent=None, card=card, totals=totals, shards=shards, published=True)


def _last_name(root: str) -> str:
    return f"`{root.rstrip('/').rpartition('/')[2]}`"


def _public_entries(manifest: Manifest) -> Iterator[ShardEntry]:
    for entry in manifest.shards:
        if entry.path is not None:
            yield replace(
                entry,
                quarantine_path=None,
                quarantine_sha256=None,
                quarantine_size=0,
                quarantined=0,
                inputs_seen=entry.rows // manifest.views,
                commit_sha256="",
                absent=0,
                left_out=0,
            )


def _refuse_other_dataset(to: Store, public: Manifest) -> None:
    if to.info(CURRENT_PLAN) is not None:
        raise ConfigError(f"{to.url} holds a data set that was made there; expected an empty place for the copy. Choose another DEST")
    pointer = load_pointer(to)
    if pointer is not None and load_manifest(to, pointer).shards != public.shards:
        raise ConfigError(f"{to.url} holds another data set; expected an empty place for the copy. Choose another DEST, or empty this one")


def _copy(store: Store, to: Store, reference: ObjectRef) -> bool:
    """Copy one shard unless it exists; return whether it was copied. Its name contains its digest, so equal names mean equal content."""
    there = to.info(reference.path)
    if there is not None and there.size == reference.size:
        return False
    to.write(reference.path, _checked(store, reference.path, reference.sha256))
    return True


def _checked(store: Store, path: str, sha256: str) -> bytes:
    data = store.read(path)
    if sha256_hex(data) != sha256:
        raise CorruptObjectError(
            path, f"sha256 is {sha256_hex(data)[:12]}…; the manifest names {sha256[:12]}…. Nothing damaged is published"
        )
    return data
