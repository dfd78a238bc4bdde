"""The frozen plan: which inputs make which shard. Written once, in parts, with a commit point; never relisted on resume.

Order of writing: tokenizer, parts, `plan.json`, `current.json`. Without `current.json` no plan exists.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.canonical import canonical_json, keyed_hashes64, seal, sha256_hex, unseal
from pipeline.config import PlanConfig, SourceConfig
from pipeline.errors import CorruptObjectError, MissingObjectError, PlanError
from pipeline.faults import crash_point
from pipeline.partition import CHUNK_ROWS, PLAN_SCHEMA, RowSpool, table_to_rows
from pipeline.records import PlanRow
from pipeline.shards.manifest import MANIFEST_POINTER, read_sealed
from pipeline.shards.schema import FORMAT_VERSION, check_version
from pipeline.shards.spec import TokenizerSpec
from pipeline.storage import Store

__all__ = [
    "CURRENT_PLAN",
    "Listing",
    "Plan",
    "PlanPart",
    "PlanRequest",
    "load_chain",
    "load_plan",
    "parse_plan",
    "part_digest",
    "plan_pointer",
    "publish_plan_json",
    "read_part",
    "read_shard_rows",
    "relist_parts",
    "rows_of_shard",
    "write_plan",
]

CURRENT_PLAN = "plan/current.json"
PART_SHARDS = 16
VIEW_POLICY = "one"
REPETITIVE_COLUMNS = ("kind", "label", "meta")
"""Columns of a plan part that gain from a dictionary; the others would only build one and drop it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPart:
    """One Parquet file of the plan: a row group per shard."""

    path: str
    sha256: str
    size: int
    digest: str
    """sha256 over (sample_id, size, version) in plan order: what identifies the inputs, whatever wrote the file."""
    first_shard: int
    shards: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a plan is made from, besides the listing."""

    fingerprint: str
    config: PlanConfig
    source: dict[str, Any]
    """Recorded source: url, kind, options; never credentials."""
    tokenizer_objects: dict[str, str]
    """sha256 of each object under tokenizer/."""
    tokenizer_json: str
    """Text of tokenizer/tokenizer.json, so that `repair` can restore it exactly."""
    classes: tuple[int | str, ...] = ()
    """Class table handed over by another dataset or an older generation."""
    generation: int = 1
    earlier_plans: tuple[str, ...] = ()
    """Plan ids of the older generations, oldest first."""
    first_shard: int = 0
    card: dict[str, str] = field(default_factory=dict)
    """Dataset card: licence, created, …; copied into the manifest."""
    label_type: str | None = None
    meta_types: dict[str, str] = field(default_factory=dict)
    matched: tuple[str, ...] = ()
    """What the listing matched, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A frozen plan; identified by `plan_id`."""

    plan_id: str
    fingerprint: str
    shard_rows: int
    batch_rows: int
    codec: str
    order_seed: int
    view_policy: str
    source: dict[str, Any]
    tokenizer_objects: dict[str, str]
    tokenizer_json: str
    label_type: str | None
    meta_types: dict[str, str]
    classes: tuple[int | str, ...]
    images_planned: int
    """Inputs known at planning; tars add theirs at commit."""
    tars_planned: int
    first_shard: int
    shards: int
    parts: tuple[PlanPart, ...]
    matched: tuple[str, ...]
    card: dict[str, str]
    generation: int
    earlier_plans: tuple[str, ...]

    @property
    def shard_numbers(self) -> range:
        """Numbers of the shards of this generation."""
        return range(self.first_shard, self.first_shard + self.shards)

    @property
    def path(self) -> str:
        """Path of plan.json below OUT."""
        return f"plan/{self.plan_id}/plan.json"

    @property
    def copy_path(self) -> str:
        """Path of the copy of plan.json that `repair` restores it from: nothing else could."""
        return f"plan/{self.plan_id}/plan.copy.json"

    @property
    def spec(self) -> TokenizerSpec:
        """The spec of the planned tokenizer."""
        return TokenizerSpec.from_json(json.loads(self.tokenizer_json)["spec"], self.path)

    def source_config(self, storage_options: dict[str, Any]) -> SourceConfig:
        """Return how the source was read, with the credentials of this run, which no plan holds."""
        options = self.source["options"]
        return SourceConfig(**{**options, "meta": tuple(options["meta"]), "storage_options": storage_options})

    @property
    def config(self) -> PlanConfig:
        """The options that shaped the shards."""
        return PlanConfig(shard_rows=self.shard_rows, batch_rows=self.batch_rows, codec=self.codec, order_seed=self.order_seed)

    def to_bytes(self) -> bytes:
        """Return the sealed plan.json."""
        return seal({"format_version": FORMAT_VERSION, **asdict(self)})

    def part_of(self, shard: int) -> PlanPart:
        """Return the part that holds a shard."""
        return self.parts[(shard - self.first_shard) // PART_SHARDS]


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
            writer = pq.ParquetWriter(file, PLAN_SCHEMA, compression="zstd", use_dictionary=list(REPETITIVE_COLUMNS))
        writer.write_table(table, row_group_size=max(1, table.num_rows))
        digest.update(rows_digest_input(table))
        rows += table.num_rows
        shard += 1
        pa.default_memory_pool().release_unused()  # else it keeps several times what it lent, for the whole run
        if shard - first == PART_SHARDS:
            writer.close()
            yield finish()
            writer, digest, rows, first, number = None, hashlib.sha256(), 0, shard, number + 1
    if writer is not None:
        writer.close()
        yield finish()


def rows_digest_input(table: pa.Table) -> bytes:
    """Return the bytes that a part's digest covers for one shard: sample_id, size, version of every row."""
    columns = (table["sample_id"].to_pylist(), table["size"].to_pylist(), table["version"].to_pylist())
    return canonical_json(list(zip(*columns, strict=True)))


def plan_id_of(request: PlanRequest, shard_rows: int, digests: list[str]) -> str:
    """Return the identity of a plan (PROTOCOL: Identity); the source root, host and library versions are not part of it."""
    return sha256_hex(
        canonical_json(
            {
                "format_version": FORMAT_VERSION,
                "fingerprint": request.fingerprint,
                "shard_rows": shard_rows,
                "batch_rows": request.config.batch_rows,
                "codec": request.config.codec,
                "order_seed": request.config.order_seed,
                "view_policy": VIEW_POLICY,
                "generation": request.generation,
                "parts": digests,
            }
        )
    )


class Listing:
    """A source listed once: rows spooled to the local disk, and the rows with the smallest hashes kept as a sample.

    Use as a context manager; memory stays bounded whatever the length of the listing.
    """

    def __init__(self, rows: Iterable[PlanRow], *, order_seed: int, keep_order: bool, sample: int, sample_seed: int) -> None:
        self._rows = rows
        self._order_seed = order_seed
        self._sample_size = sample
        self._sample_key = f"sample-{sample_seed}"
        self.keep_order = keep_order
        self.sample: list[PlanRow] = []
        """Rows in ascending order of a hash of (sample id, size): the same bucket gives the same sample, however it is listed."""

    def __enter__(self) -> Listing:
        self._folder = tempfile.TemporaryDirectory(prefix="tokenshards-plan-")
        self.folder = Path(self._folder.name)
        self.spool = RowSpool(self.folder, order_seed=self._order_seed, keep_order=self.keep_order)
        self._spool_and_sample()
        crash_point("after-listing")
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def _spool_and_sample(self) -> None:
        smallest: list[tuple[int, int, PlanRow]] = []  # a heap of negated hashes: the largest of the sample on top
        rows = iter(self._rows)
        while chunk := list(islice(rows, CHUNK_ROWS)):
            if self._sample_size:
                hashes = keyed_hashes64(self._sample_key, [f"{row.sample_id}\0{row.size}" for row in chunk])
                for index, (value, row) in enumerate(zip(hashes, chunk, strict=True), self.spool.rows):
                    if len(smallest) < self._sample_size:
                        heapq.heappush(smallest, (-value, -index, row))
                    elif -value > smallest[0][0]:
                        heapq.heapreplace(smallest, (-value, -index, row))
            self.spool.add(chunk)
        self.sample = [row for _, _, row in sorted(smallest, reverse=True)]


def write_plan(store: Store, listing: Listing, request: PlanRequest, tars_per_shard: int) -> Plan:
    """Partition and publish the plan of a listing, in the order parts, plan.json, current.json; the listing's sample is dropped."""
    spool = listing.spool
    listing.sample.clear()  # its time is over, and partitioning needs the room
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
        view_policy=VIEW_POLICY,
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
    )
    publish_plan_json(store, plan)
    return plan


def _publish_part(store: Store, plan_id: str, part: _SpooledPart) -> PlanPart:
    data = part.file.read_bytes()
    path = f"plan/{plan_id}/{part.name}.parquet"
    store.write(path, data)
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
    """Write plan.json, its copy, and last the pointer that makes the plan exist."""
    data = plan.to_bytes()
    store.write(plan.copy_path, data)
    store.write(plan.path, data)
    crash_point("after-plan-json")
    store.write(CURRENT_PLAN, plan_pointer(plan))


def plan_pointer(plan: Plan) -> bytes:
    """Return the sealed plan/current.json that names a plan."""
    pointer = {"plan_id": plan.plan_id, "sha256": sha256_hex(plan.to_bytes()), "generation": plan.generation}
    return seal({"format_version": FORMAT_VERSION, **pointer})


def relist_parts(listing: Listing, plan: Plan, config: PlanConfig, tars_per_shard: int, wanted: dict[str, PlanPart]) -> dict[str, bytes]:
    """Return the bytes of the wanted parts made from a fresh listing; a part whose inputs changed is left out."""
    found = {}
    for part in spool_parts(listing.spool, listing.folder, config, plan.first_shard, tars_per_shard):
        path = f"plan/{plan.plan_id}/{part.name}.parquet"
        if path in wanted and part.digest == wanted[path].digest:
            found[path] = part.file.read_bytes()
    return found


def load_plan(store: Store, plan_id: str | None = None) -> Plan | None:
    """Return the current plan (or the one named), None where no plan exists; damage raises CorruptObjectError."""
    sha256 = None
    if plan_id is None:
        try:
            current = read_sealed(store, CURRENT_PLAN)
        except MissingObjectError:
            _refuse_lost_plan(store)
            return None
        plan_id, sha256 = str(current["plan_id"]), current["sha256"]
    path = f"plan/{plan_id}/plan.json"
    try:
        data = store.read(path)
    except MissingObjectError:
        raise PlanError(f"{store.url}/{path} is missing. Run `tokenshards repair {store.url}`") from None
    if sha256 is not None and sha256_hex(data) != sha256:
        raise CorruptObjectError(path, f"its sha256 is not the one that {CURRENT_PLAN} names. Run `tokenshards repair {store.url}`")
    return parse_plan(data, path)


def _refuse_lost_plan(store: Store) -> None:
    """Raise PlanError where there is work but no plan: a new plan would replace the tokenizer that the work was done with."""
    if store.info(MANIFEST_POINTER) is not None or next(store.list("commits"), None) is not None:
        raise PlanError(f"{store.url}/{CURRENT_PLAN} is missing, but the dataset has commits. Run `tokenshards repair {store.url}`")


def parse_plan(data: bytes, path: str) -> Plan:
    """Return the plan sealed in `data`; raises CorruptObjectError or FormatVersionError."""
    value = unseal(data, path)
    check_version(str(value.pop("format_version", "")), path)
    try:
        parts = tuple(PlanPart(**part) for part in value["parts"])
        tuples = {name: tuple(value[name]) for name in ("classes", "matched", "earlier_plans")}
        return Plan(**{**value, **tuples, "parts": parts})
    except (KeyError, TypeError) as error:
        raise CorruptObjectError(path, f"not a plan ({type(error).__name__}: {error})") from None


def load_chain(store: Store) -> list[Plan]:
    """Return the plans of all generations, oldest first; empty where no plan exists."""
    current = load_plan(store)
    if current is None:
        return []
    older = [load_plan(store, plan_id) for plan_id in current.earlier_plans]
    return [*(plan for plan in older if plan is not None), current]


def read_part(store: Store, part: PlanPart) -> bytes:
    """Return the bytes of a part, checked against plan.json."""
    data = store.read(part.path)
    if sha256_hex(data) != part.sha256:
        raise CorruptObjectError(part.path, f"sha256 is {sha256_hex(data)[:12]}…; plan.json names {part.sha256[:12]}…. Run `repair`")
    return data


def part_digest(data: bytes) -> str:
    """Return the digest of a part's rows, whatever library wrote its bytes."""
    file = pq.ParquetFile(pa.BufferReader(data))
    digest = hashlib.sha256()
    for group in range(file.num_row_groups):
        digest.update(rows_digest_input(file.read_row_group(group, use_threads=False)))
    return digest.hexdigest()


def rows_of_shard(part_data: bytes, plan: Plan, shard: int) -> list[PlanRow]:
    """Return the planned rows of one shard from the bytes of its part."""
    group = shard - plan.part_of(shard).first_shard
    return table_to_rows(pq.ParquetFile(pa.BufferReader(part_data)).read_row_group(group, use_threads=False), plan.label_type)


@lru_cache(maxsize=2)
def _cached_part(store: Store, part: PlanPart) -> bytes:
    return read_part(store, part)


def read_shard_rows(store: Store, plan: Plan, shard: int) -> list[PlanRow]:
    """Return the planned rows of one shard, in order; the last parts read are kept."""
    return rows_of_shard(_cached_part(store, plan.part_of(shard)), plan, shard)
