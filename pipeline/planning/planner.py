"""Make a plan: list the source once, cut the listing into shards in bounded memory, publish parts, plan, and last the pointer."""

from __future__ import annotations

import hashlib
import heapq
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenshards.pipeline.canonical import canonical_json, keyed_hashes64, sha256_hex
from tokenshards.pipeline.config import PlanConfig
from tokenshards.pipeline.fault_injection import crash_point
from tokenshards.pipeline.planning.part_digest import rows_digest_input
from tokenshards.pipeline.planning.partition import GROUP_ROWS, RowSpool
from tokenshards.pipeline.planning.plan import CURRENT_PLAN, PART_SHARDS, Plan, PlanPart, plan_pointer
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.shards.version import FORMAT_VERSION
from tokenshards.pipeline.storage.store import Store

__all__ = ["Listing", "PlanRequest", "relist_parts", "write_plan"]

SPREAD_ROWS, SPREAD_OF_GROUP = 512, 4
REPETITIVE_COLUMNS = ("kind", "label", "meta")
"""Columns of a plan part that gain from a dictionary; for the others Parquet would build one and drop it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """All inputs of a plan except the listing."""

    fingerprint: str
    config: PlanConfig
    source: dict[str, Any]
    """Recorded source: url, kind, options; never credentials."""
    tokenizer_objects: dict[str, str]
    """sha256 of each object under tokenizer/."""
    tokenizer_json: str
    """Text of tokenizer/tokenizer.json, so that `repair` can restore it exactly."""
    classes: tuple[int | str, ...] = ()
    """Class table of another dataset or an older generation, which this plan continues."""
    generation: int = 1
    earlier_plans: tuple[str, ...] = ()
    """Plan ids of the older generations, oldest first."""
    first_shard: int = 0
    card: dict[str, str] = field(default_factory=dict)
    """Dataset card: licence, created, …; copied into the manifest."""
    label_type: str | None = None
    meta_types: dict[str, str] = field(default_factory=dict)
    matched: tuple[str, ...] = ()
    """The summary of the listing as lines of text."""
    mask: dict[str, Any] | None = None
    """What `Plan.mask` records; its place is no part of the plan's identity."""
    format_version: str = FORMAT_VERSION
    """See `plan_version`; a later generation has the version of the generation before."""


@dataclass(frozen=True, slots=True)
class _SpooledPart:
    file: Path
    name: str
    digest: str
    first_shard: int
    shards: int
    rows: int


def spool_parts(spool: RowSpool, folder: Path, config: PlanConfig, first_shard: int, tars_per_shard: int) -> Iterator[_SpooledPart]:
    """Write the part files of a spooled listing to a local folder, in shard order."""
    rows_per_shard = config.rows_per_shard(spool.inputs)
    writer: pq.ParquetWriter | None = None
    digest, rows, shard, first = hashlib.sha256(), 0, first_shard, first_shard
    number = 0

    def finish() -> _SpooledPart:
        name = f"part-{number:05d}"
        return _SpooledPart(folder / f"{name}.parquet", name, digest.hexdigest(), first, shard - first, rows)

    for table in spool.shards(rows_per_shard, tars_per_shard):
        if writer is None:
            file = str(folder / f"part-{number:05d}.parquet")
            writer = pq.ParquetWriter(file, spool.schema, compression="zstd", use_dictionary=list(REPETITIVE_COLUMNS))
        writer.write_table(table, row_group_size=max(1, table.num_rows))
        digest.update(rows_digest_input(table))
        rows += table.num_rows
        shard += 1
        pa.default_memory_pool().release_unused()  # otherwise the pool keeps several times the memory in use, for the whole run
        if shard - first == PART_SHARDS:
            writer.close()
            yield finish()
            writer, digest, rows, first, number = None, hashlib.sha256(), 0, shard, number + 1
    if writer is not None:
        writer.close()
        yield finish()


def plan_id_of(request: PlanRequest, shard_rows: int, digests: list[str]) -> str:
    """Return the identity of a plan (SPEC section 2); the source root, host and library versions are not part of it."""
    return sha256_hex(
        canonical_json(
            {
                "format_version": request.format_version,
                "fingerprint": request.fingerprint,
                "shard_rows": shard_rows,
                "batch_rows": request.config.batch_rows,
                "codec": request.config.codec,
                "order_seed": request.config.order_seed,
                "view_policy": request.config.views,
                "generation": request.generation,
                "parts": digests,
                **({} if request.mask is None else {"mask": _identity_of_masks(request.mask)}),
            }
        )
    )


def _identity_of_masks(mask: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies the masks of a plan: a folder may move, but another column holds other masks."""
    return {name: value for name, value in mask.items() if name != "source" or mask["kind"] != "folder"}


class Listing:
    """One listing of a source: all rows spooled to local disk, and the rows with the smallest hashes as a sample.

    Use it as a context manager; memory is bounded for any length of the listing.
    """

    def __init__(
        self, rows: Iterable[PlanRow], *, order_seed: int, keep_order: bool, sample: int, sample_seed: int, mask_files: bool = False
    ) -> None:
        """`mask_files`: rows may have masks in files of their own."""
        self._rows = rows
        self._mask_files = mask_files
        self._order_seed = order_seed
        self._sample_size = sample
        self._sample_key = f"sample-{sample_seed}"
        self.keep_order = keep_order
        self.sample: list[PlanRow] = []
        """Rows in ascending order of a hash of (sample id, size): the same bucket gives the same sample in any order of listing."""
        self.spread: list[PlanRow] = []
        """A few hundred rows from the whole listing, which cost nothing to choose: the first of them, then some of each group."""

    def __enter__(self) -> Listing:
        self._folder = tempfile.TemporaryDirectory(prefix="tokenshards-plan-")
        try:
            self.folder = Path(self._folder.name)
            self.spool = RowSpool(self.folder, order_seed=self._order_seed, keep_order=self.keep_order, mask_files=self._mask_files)
            self._spool_and_sample()
        except BaseException:  # __exit__ will not run, and a process that ends by os._exit does not clean up
            self._folder.cleanup()
            raise
        crash_point("after-listing")
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def _spool_and_sample(self) -> None:
        smallest: list[tuple[int, int, PlanRow]] = []  # a heap of negated hashes: the largest hash of the sample is on top
        rows = iter(self._rows)
        step, groups = 1, 0
        while group := list(islice(rows, GROUP_ROWS)):
            if groups % step == 0:
                self.spread += group if groups == 0 else group[:: GROUP_ROWS // SPREAD_OF_GROUP]
                if len(self.spread) > SPREAD_ROWS:  # half of the groups, from now on half as often
                    self.spread, step = self.spread[::2], 2 * step
            groups += 1
            if self._sample_size:
                hashes = keyed_hashes64(self._sample_key, [f"{row.sample_id}\0{row.size}" for row in group])
                for index, (value, row) in enumerate(zip(hashes, group, strict=True), self.spool.rows):
                    if len(smallest) < self._sample_size:
                        heapq.heappush(smallest, (-value, -index, row))
                    elif -value > smallest[0][0]:
                        heapq.heapreplace(smallest, (-value, -index, row))
            self.spool.add(group)
        self.sample = [row for _, _, row in sorted(smallest, reverse=True)]


def write_plan(store: Store, listing: Listing, request: PlanRequest, tars_per_shard: int) -> Plan:
    """Partition a listing and publish its plan in the order parts, plan.json, current.json; drops the listing's sample."""
    spool = listing.spool
    listing.sample.clear()  # no longer needed, and partitioning needs the memory
    listing.spread.clear()
    shard_rows = request.config.rows_per_shard(spool.inputs)
    spooled = list(spool_parts(spool, listing.folder, request.config, request.first_shard, tars_per_shard))
    plan_id = plan_id_of(request, shard_rows, [part.digest for part in spooled])
    parts = []
    for part in spooled:
        parts.append(_publish_part(store, plan_id, part))
        crash_point("after-plan-part")
    plan = Plan(
        plan_id=plan_id,
        fingerprint=request.fingerprint,
        shard_rows=shard_rows,
        batch_rows=request.config.batch_rows,
        codec=request.config.codec,
        order_seed=request.config.order_seed,
        view_policy=request.config.views,
        source=request.source,
        tokenizer_objects=request.tokenizer_objects,
        tokenizer_json=request.tokenizer_json,
        label_type=request.label_type,
        meta_types=request.meta_types,
        classes=request.classes,
        images_planned=spool.inputs,
        tars_planned=spool.tars,
        first_shard=request.first_shard,
        shards=sum(part.shards for part in parts),
        parts=tuple(parts),
        matched=request.matched,
        card=request.card,
        generation=request.generation,
        earlier_plans=request.earlier_plans,
        mask=request.mask,
        format_version=request.format_version,
    )
    publish_plan_json(store, plan)
    return plan


def _publish_part(store: Store, plan_id: str, part: _SpooledPart) -> PlanPart:
    data = part.file.read_bytes()
    path = f"plan/{plan_id}/{part.name}.parquet"
    store.write(path, data)
    part.file.unlink()
    return PlanPart(
        path=path,
        sha256=sha256_hex(data),
        size=len(data),
        digest=part.digest,
        first_shard=part.first_shard,
        shards=part.shards,
        rows=part.rows,
    )


def publish_plan_json(store: Store, plan: Plan) -> None:
    """Write the copy, plan.json, and last the pointer, which makes the plan exist."""
    data = plan.to_bytes()
    store.write(plan.copy_path, data)
    store.write(plan.path, data)
    crash_point("after-plan-json")
    store.write(CURRENT_PLAN, plan_pointer(plan))


def relist_parts(listing: Listing, plan: Plan, config: PlanConfig, tars_per_shard: int, wanted: dict[str, PlanPart]) -> dict[str, bytes]:
    """Return path -> bytes of the wanted parts, remade from a fresh listing; leaves out a part whose inputs changed."""
    found = {}
    for part in spool_parts(listing.spool, listing.folder, config, plan.first_shard, tars_per_shard):
        path = f"plan/{plan.plan_id}/{part.name}.parquet"
        if path in wanted and part.digest == wanted[path].digest:
            found[path] = part.file.read_bytes()
    return found
