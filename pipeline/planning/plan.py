"""The frozen plan: which inputs make which shard. It is written once, in parts, with a commit point; a resumed run never lists again.

Order of writing: tokenizer, parts, `plan.json`, `current.json`. Without `current.json` there is no plan.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenshards.pipeline.canonical import known_fields, seal, sha256_hex, unseal
from tokenshards.pipeline.config import PlanConfig, SourceConfig
from tokenshards.pipeline.errors import CorruptObjectError, FormatError, MissingObjectError, PlanError
from tokenshards.pipeline.planning.partition import table_to_rows
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.shards.compact.model_file import model_of_name
from tokenshards.pipeline.shards.manifest import MANIFEST_POINTER, read_sealed
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.split_index import refuse_split_root
from tokenshards.pipeline.shards.version import (
    ACCOUNTS_VERSION,
    COMPACT_VERSION,
    FORMAT_VERSION,
    MASK_VERSION,
    NEWEST_VERSION,
    check_version,
    version_numbers,
)
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.view_policy import ViewPolicy

__all__ = [
    "CURRENT_PLAN",
    "PART_SHARDS",
    "Plan",
    "PlanPart",
    "load_chain",
    "load_plan",
    "parse_plan",
    "plan_pointer",
    "plan_version",
    "read_part",
    "read_shard_rows",
    "rows_of_shard",
]

CURRENT_PLAN = "plan/current.json"
IMPORTS = ("seit",)
PART_SHARDS = 16
"""Shards per part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPart:
    """One Parquet file of the plan: a row group per shard."""

    path: str
    sha256: str
    size: int
    digest: str
    """sha256 over (sample_id, size, version) in plan order: it identifies the inputs and does not depend on the Parquet writer."""
    first_shard: int
    shards: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A frozen plan; `plan_id` is its identity."""

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
    """Inputs counted at planning; the inputs of tars are counted at commit."""
    tars_planned: int
    first_shard: int
    shards: int
    parts: tuple[PlanPart, ...]
    matched: tuple[str, ...]
    card: dict[str, str]
    generation: int
    earlier_plans: tuple[str, ...]
    mask: dict[str, Any] | None = None
    """Format of the masks, and where they come from; None for a plan without masks."""
    format_version: str = FORMAT_VERSION
    """The format version that made the plan; it never changes."""
    newer_json: bytes = field(init=False, default=b"", repr=False)
    """The whole plan.json if it has fields of a newer minor version; else empty."""

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
        """Path of the copy of plan.json. Only from this copy can `repair` restore a lost plan.json."""
        return f"plan/{self.plan_id}/plan.copy.json"

    @property
    def spec(self) -> TokenizerSpec:
        """The spec of the planned tokenizer."""
        return TokenizerSpec.from_json(json.loads(self.tokenizer_json)["spec"], self.path)

    @property
    def is_import(self) -> bool:
        """Whether the inputs are tokens of another project, which only the import of that project can read."""
        return self.source["kind"] in IMPORTS

    def source_config(self, asked: SourceConfig) -> SourceConfig:
        """Return the planned source options with the access options of `asked`: no plan holds credentials. Ignores newer options."""
        known = {part.name for part in fields(SourceConfig)}
        before_rules_had_numbers = {"rules": 1}
        planned = {name: value for name, value in self.source["options"].items() if name in known}
        if self.mask is not None and self.mask["kind"] == "folder" and asked.masks is None:
            asked = replace(asked, masks=str(self.mask["source"]))
        return asked.with_planned({**before_rules_had_numbers, **planned})

    def refuse_newer(self) -> None:
        """Raise PlanError if a newer version made the plan: its unknown fields may decide which inputs there are, and their ids."""
        if version_numbers(self.format_version) > version_numbers(NEWEST_VERSION):
            raise PlanError(
                f"{self.path}: made in format {self.format_version}; this version can read such a dataset, but works only on plans up to "
                f"format {NEWEST_VERSION}. Use the version of tokenshards that made the plan"
            )

    @property
    def has_mask_files(self) -> bool:
        """Whether the parts have the columns of masks in files of their own."""
        return self.mask is not None and self.mask["kind"] in ("folder", "column")

    @property
    def mask_format(self) -> MaskFormat:
        """Format of the masks of a plan that has some; raises CorruptObjectError if it is none."""
        try:
            return MaskFormat.from_json(self.mask or {})
        except ValueError as error:
            raise CorruptObjectError(self.path, str(error)) from None

    @property
    def config(self) -> PlanConfig:
        """The options that shaped the shards."""
        return PlanConfig(
            shard_rows=self.shard_rows,
            batch_rows=self.batch_rows,
            codec=self.codec,
            order_seed=self.order_seed,
            views=self.views.name,
        )

    @property
    def views(self) -> ViewPolicy:
        """Which views of each image become rows; raises FormatError for a policy of a newer version."""
        return ViewPolicy.stored(self.view_policy, self.path)

    def to_bytes(self) -> bytes:
        """Return the sealed plan.json."""
        if self.newer_json:
            return self.newer_json
        value = asdict(self)
        del value["newer_json"]
        if self.mask is None:
            del value["mask"]  # the field came later
        return seal(value)

    def part_of(self, shard: int) -> PlanPart:
        """Return the part that holds a shard."""
        return self.parts[(shard - self.first_shard) // PART_SHARDS]


def plan_version(config: SourceConfig, *, newer_inputs: bool, codec: str = "default") -> str:
    """Return the format version of a new plan: a version that has not all of its rules must not work on it.

    `newer_inputs`: the listing found inputs that a worker may find absent or leave out, or that format 1.0 would read otherwise.
    `codec`: the name of the plan.
    """
    if config.takes_masks:
        return MASK_VERSION
    if model_of_name(codec) is not None:
        return COMPACT_VERSION
    return ACCOUNTS_VERSION if newer_inputs or config.beyond_format_1_0 else FORMAT_VERSION


def plan_pointer(plan: Plan) -> bytes:
    """Return the sealed plan/current.json that names a plan."""
    pointer = {"plan_id": plan.plan_id, "sha256": sha256_hex(plan.to_bytes()), "generation": plan.generation}
    return seal({"format_version": plan.format_version, **pointer})


def load_plan(store: Store, plan_id: str | None = None) -> Plan | None:
    """Return the current plan or the plan with the given id, None if there is no plan; raises CorruptObjectError for damage."""
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
        raise CorruptObjectError(path, f"its sha256 differs from the one in {CURRENT_PLAN}. Run `tokenshards repair {store.url}`")
    return parse_plan(data, path)


def _refuse_lost_plan(store: Store) -> None:
    """Raise PlanError if there is work but no plan: a new plan would replace the tokenizer that made the existing work.

    Raises ConfigError if the folder holds one dataset per split.
    """
    refuse_split_root(store)
    published = False
    with contextlib.suppress(FormatError, MissingObjectError):
        published = bool(read_sealed(store, str(read_sealed(store, MANIFEST_POINTER)["manifest"])).get("published"))
    if published:
        raise PlanError(
            f"{store.url} is a published copy without a plan: it does not record where its images are, and nothing can be added to it. "
            "Use the original data set, or tokenize into another output"
        )
    if store.info(MANIFEST_POINTER) is not None or next(store.list("commits"), None) is not None:
        raise PlanError(f"{store.url}/{CURRENT_PLAN} is missing, but the dataset has commits. Run `tokenshards repair {store.url}`")


def parse_plan(data: bytes, path: str) -> Plan:
    """Return the plan sealed in `data`; raises CorruptObjectError or FormatVersionError."""
    value = unseal(data, path)
    check_version(str(value.get("format_version", "")), path)
    try:
        parts = tuple(PlanPart(**known_fields(PlanPart, part)) for part in value["parts"])
        tuples = {name: tuple(value[name]) for name in ("classes", "matched", "earlier_plans")}
        plan = Plan(**{**known_fields(Plan, value), **tuples, "parts": parts})
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(path, f"not a plan ({type(error).__name__}: {error})") from None
    if plan.to_bytes() != data:
        object.__setattr__(plan, "newer_json", data)
    return plan


def load_chain(store: Store) -> list[Plan]:
    """Return the plans of all generations, oldest first; [] if there is no plan."""
    current = load_plan(store)
    if current is None:
        return []
    older = [load_plan(store, plan_id) for plan_id in current.earlier_plans]
    return [*(plan for plan in older if plan is not None), current]


def read_part(store: Store, part: PlanPart) -> bytes:
    """Return the bytes of a part; raises CorruptObjectError if they do not match plan.json."""
    data = store.read(part.path)
    if sha256_hex(data) != part.sha256:
        raise CorruptObjectError(part.path, f"sha256 is {sha256_hex(data)[:12]}…; plan.json names {part.sha256[:12]}…. Run `repair`")
    return data


def rows_of_shard(part_data: bytes, plan: Plan, shard: int) -> list[PlanRow]:
    """Return the planned rows of one shard from the bytes of its part."""
    group = shard - plan.part_of(shard).first_shard
    table = pq.ParquetFile(pa.BufferReader(part_data)).read_row_group(group, use_threads=False)
    return table_to_rows(table, plan.label_type, plan.meta_types)


@lru_cache(maxsize=2)
def _cached_part(store: Store, part: PlanPart) -> bytes:
    return read_part(store, part)


def read_shard_rows(store: Store, plan: Plan, shard: int) -> list[PlanRow]:
    """Return the planned rows of one shard, in order; the two parts read last stay in memory."""
    return rows_of_shard(_cached_part(store, plan.part_of(shard)), plan, shard)
