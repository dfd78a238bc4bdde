"""The manifest: a run writes it last, and readers trust nothing else.

`manifest.json` is a pointer to `manifest-<12 hex>.json`, which names the shard table `shards-<12 hex>.parquet`. A generation never
rewrites the shards of an older generation; its table starts with the older rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenshards.pipeline.canonical import known_fields, seal, sha256_hex, unseal
from tokenshards.pipeline.errors import CorruptObjectError, MissingObjectError
from tokenshards.pipeline.records import Untaken
from tokenshards.pipeline.shards.commit import ObjectRef
from tokenshards.pipeline.shards.masks import MaskTotals
from tokenshards.pipeline.shards.shard_table import ShardEntry, ShardTable, encode_shard_table, read_shard_table
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.version import ACCOUNTS_VERSION, FORMAT_VERSION, MASK_VERSION, PUBLISHED_VERSION, check_version
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.view_policy import ViewPolicy
from tokenshards.pipeline.words import short_repr

__all__ = [
    "MANIFEST_POINTER",
    "UNTAKEN_TOTALS",
    "Manifest",
    "ShardEntry",
    "load_manifest",
    "load_parent",
    "load_pointer",
    "publish_manifest",
    "read_sealed",
]

MANIFEST_POINTER = "manifest.json"
UNTAKEN_TOTALS = {
    "images_absent": "absent",
    "absent_example": "absent_example",
    "left_out": "left_out",
    "left_out_examples": "left_out_examples",
    "images_lost_about": "lost",
    "lost_example": "lost_example",
}
"""Name in `totals` -> field of Untaken; each only where there is something to count."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a reader needs to know about a complete dataset."""

    generation: int
    parent: str | None
    """Name of the previous generation's manifest."""
    plan_ids: tuple[str, ...]
    spec: TokenizerSpec
    classes: tuple[int | str, ...]
    """Class table: sorted in the first generation; later generations only append."""
    class_counts: tuple[int, ...]
    totals: dict[str, Any]
    statistics: dict[str, Any]
    """`histogram`: packed id counts per level."""
    card: dict[str, Any]
    """Dataset card: source, licence, created."""
    tokenizer_objects: dict[str, str]
    """sha256 of the objects under tokenizer/."""
    label_type: str | None = None
    view_policy: str = "one"
    """Name of the view policy: which views of each image are rows."""
    published: bool = False
    """True for a public copy. It has no plan, commits or quarantine, so the shard table alone lists its objects."""
    mask: MaskTotals | None = None
    """Format and counts of the masks; None for a dataset without masks."""
    name: str = ""
    table: ObjectRef | None = None
    shards: Sequence[ShardEntry] = field(default_factory=ShardTable)

    def __repr__(self) -> str:
        return short_repr(
            self, name=self.name, generation=self.generation, family=self.spec.family, classes=self.classes, shards=self.shards
        )

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer that made every id."""
        return self.spec.fingerprint

    @property
    def untaken(self) -> Untaken:
        """What all generations found absent or left out."""
        return Untaken(**{part: copy(self.totals[name]) for name, part in UNTAKEN_TOTALS.items() if name in self.totals})

    @property
    def views(self) -> int:
        """Rows per image; raises FormatError for a view policy of a newer version."""
        return ViewPolicy.stored(self.view_policy, self.name).count


def read_sealed(store: Store, path: str) -> dict[str, Any]:
    """Read one sealed JSON object and check its seal and format version."""
    value = unseal(store.read(path), path)
    check_version(str(value.get("format_version", "")), path)
    return value


def load_pointer(store: Store) -> dict[str, Any] | None:
    """Return the pointer {manifest, sha256, generation}, or None if the dataset was never completed."""
    try:
        return read_sealed(store, MANIFEST_POINTER)
    except MissingObjectError:
        return None


def load_manifest(store: Store, pointer: dict[str, Any] | None = None) -> Manifest:
    """Read pointer, manifest and shard table, and check each against its checksum.

    Raises MissingObjectError if there is no manifest, CorruptObjectError if any of the three is damaged.
    """
    pointer = pointer or read_sealed(store, MANIFEST_POINTER)
    return _read_manifest(store, str(pointer["manifest"]), str(pointer["sha256"]))


def load_parent(store: Store, manifest: Manifest) -> Manifest | None:
    """Return the previous generation's manifest, None for the first generation; raises what `load_manifest` raises."""
    return None if manifest.parent is None else _read_manifest(store, manifest.parent, _digest_in(manifest.parent))


def _digest_in(name: str) -> str:
    return name.removeprefix("manifest-").removesuffix(".json")


def _read_manifest(store: Store, name: str, sha256: str) -> Manifest:
    data = store.read(name)
    if not sha256_hex(data).startswith(sha256):
        raise CorruptObjectError(name, f"sha256 is {sha256_hex(data)[:12]}…; expected {sha256[:12]}…")
    value = unseal(data, name)
    check_version(str(value.get("format_version", "")), name)
    try:
        table = ObjectRef(**known_fields(ObjectRef, value["table"]))
        manifest = Manifest(
            **{
                **known_fields(Manifest, value),
                "spec": TokenizerSpec.from_json(value["spec"], name),
                "plan_ids": tuple(value["plan_ids"]),
                "classes": tuple(value["classes"]),
                "class_counts": tuple(value["class_counts"]),
                "mask": MaskTotals.from_json(value["mask"]) if "mask" in value else None,
                "name": name,
                "table": table,
                "shards": read_shard_table(store, table),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(name, f"not a manifest ({type(error).__name__}: {error})") from None
    return manifest


def publish_manifest(store: Store, manifest: Manifest, between: Any = None) -> Manifest:
    """Write shard table, manifest, and last the pointer; return the manifest with its names filled in.

    Calls `between` after the manifest and before the pointer (for crash tests).
    """
    table_data = encode_shard_table(manifest.shards)
    digest = sha256_hex(table_data)
    table = ObjectRef(path=f"shards-{digest[:12]}.parquet", sha256=digest, size=len(table_data))
    store.write(table.path, table_data)
    del table_data  # frees memory before `load_manifest` reads the table back
    untaken = manifest.untaken
    version = PUBLISHED_VERSION if manifest.published else ACCOUNTS_VERSION if untaken != Untaken() else FORMAT_VERSION
    if manifest.mask is not None:
        version = MASK_VERSION
    value = {
        "format_version": version,
        "generation": manifest.generation,
        "parent": manifest.parent,
        "plan_ids": list(manifest.plan_ids),
        "spec": manifest.spec.to_json(),
        "fingerprint": manifest.fingerprint,
        "classes": list(manifest.classes),
        "class_counts": list(manifest.class_counts),
        "label_type": manifest.label_type,
        "totals": manifest.totals,
        "statistics": manifest.statistics,
        "card": manifest.card,
        "tokenizer_objects": manifest.tokenizer_objects,
        "table": asdict(table),
        **({} if manifest.view_policy == "one" else {"view_policy": manifest.view_policy}),
        **({"published": True} if manifest.published else {}),
        **({} if manifest.mask is None else {"mask": manifest.mask.to_json()}),
    }
    data = seal(value)
    sha256 = sha256_hex(data)
    name = f"manifest-{sha256[:12]}.json"
    store.write(name, data)
    if between is not None:
        between()
    pointer = {"format_version": version, "manifest": name, "sha256": sha256, "generation": manifest.generation}
    store.write(MANIFEST_POINTER, seal(pointer))
    return load_manifest(store)
