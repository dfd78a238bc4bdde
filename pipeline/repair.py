"""`repair`: what damage can be undone from what is left. A dry run unless applied; it deletes only what nothing references.

Damaged data, quarantine or commit: the commit is dropped, so `tokenize` does the shard again. A damaged manifest is rebuilt from the
commits, a plan part from the source if its digest agrees, plan.json from its copy, the tokenizer from plan.json and a shard's footer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from safetensors.numpy import save

from pipeline.accounting import survey_plan
from pipeline.audit import close_generation
from pipeline.canonical import sha256_hex
from pipeline.config import PlanConfig, SourceConfig
from pipeline.errors import FormatError, MissingObjectError, PlanError, SourceError, TokenshardsError
from pipeline.heartbeat import refuse_beside_live_run
from pipeline.plan import CURRENT_PLAN, Listing, Plan, PlanPart, load_chain, parse_plan, plan_pointer, relist_parts
from pipeline.shards.commit import commit_path
from pipeline.shards.manifest import MANIFEST_POINTER, load_manifest, load_pointer
from pipeline.shards.reader import ShardReader
from pipeline.sources import open_source
from pipeline.storage import TEMPORARY_PREFIX, Store
from pipeline.verification import Verification, find_plans, verify_dataset

__all__ = ["Repair", "RepairStep", "repair_dataset"]


@dataclass(frozen=True, slots=True)
class RepairStep:
    """One thing to do (`drop`, `restore`, `rebuild`, `delete`) or that cannot be done (`refuse`)."""

    action: str
    object: str
    detail: str


@dataclass(slots=True)
class Repair:
    """What is or would be done, and whether `tokenize` has to run afterwards."""

    steps: list[RepairStep]
    applied: bool
    tokenize_needed: bool

    @property
    def refused(self) -> list[RepairStep]:
        """Steps that cannot be done, each with the reason."""
        return [step for step in self.steps if step.action == "refuse"]


def repair_dataset(
    store: Store,
    *,
    apply: bool,
    min_age_seconds: float = 86_400.0,
    source_url: str | None = None,
    source_options: dict[str, object] | None = None,
) -> Repair:
    """Plan, and with `apply` carry out, the repair of a dataset; raises LiveRunError beside a live run."""
    if apply:
        refuse_beside_live_run(store, "repair")
    return _Repairer(store, apply, min_age_seconds, source_url, source_options or {}).run()


class _Repairer:
    def __init__(
        self, store: Store, apply: bool, min_age_seconds: float, source_url: str | None, source_options: dict[str, object]
    ) -> None:
        self._store = store
        self._apply = apply
        self._min_age_seconds = min_age_seconds
        self._source_url = source_url
        self._source_options = source_options
        self._steps: list[RepairStep] = []
        self._tokenize_needed = False

    def run(self) -> Repair:
        found = verify_dataset(self._store)
        bad = {problem.object for problem in found.problems}
        self._plans(bad)
        chain = self._chain()
        if chain:
            self._tokenizer(chain, bad)
            self._parts(chain, bad)
            self._shards(found, chain)
            self._manifest(found, chain, bad)
            if not bad:
                self._orphans(chain)
        return Repair(self._steps, self._apply, self._tokenize_needed)

    def _do(self, action: str, path: str, detail: str, operation: Callable[[], None]) -> None:
        self._steps.append(RepairStep(action, path, detail))
        if self._apply:
            operation()

    def _refuse(self, path: str, detail: str) -> None:
        self._steps.append(RepairStep("refuse", path, detail))

    def _chain(self) -> list[Plan]:
        try:
            return load_chain(self._store)
        except (TokenshardsError, KeyError):
            # A dry run has restored nothing: look through to the plans that could be read.
            plans = [
                plan for plan_id, paths in find_plans(self._store).items() if (plan := self._readable_plan(plan_id, paths)) is not None
            ]
            current = self._current_of(plans)
            by_id = {plan.plan_id: plan for plan in plans}
            return [] if current is None else [by_id[plan_id] for plan_id in (*current.earlier_plans, current.plan_id) if plan_id in by_id]

    def _readable_plan(self, plan_id: str, paths: list[str]) -> Plan | None:
        for path in paths:
            try:
                plan = parse_plan(self._store.read(path), path)
            except (FormatError, MissingObjectError):
                continue
            if plan.plan_id == plan_id:
                return plan
        return None

    def _current_of(self, plans: list[Plan]) -> Plan | None:
        """Return the plan that current.json must have named: of the highest generation, one whose work was begun."""
        begun = [plan for plan in plans if next(iter(self._store.list(f"commits/{plan.plan_id}")), None) is not None]
        return max(begun or plans, key=lambda plan: (plan.generation, plan.plan_id), default=None)

    def _plans(self, bad: set[str]) -> None:
        found = find_plans(self._store)
        plans = {plan_id: self._readable_plan(plan_id, paths) for plan_id, paths in found.items()}
        for plan_id, plan in plans.items():
            both = (f"plan/{plan_id}/plan.json", f"plan/{plan_id}/plan.copy.json")
            if plan is None:
                if bad & set(both):
                    self._refuse(both[0], "neither plan.json nor its copy can be read, and nothing else holds the plan")
                continue
            data = plan.to_bytes()
            for path in both:
                if path in bad:
                    self._do("restore", path, "from its copy", partial(self._store.write, path, data))
        if CURRENT_PLAN in bad:
            current = self._current_of([plan for plan in plans.values() if plan is not None])
            if current is None:
                self._refuse(CURRENT_PLAN, "no readable plan is left to point to")
                return
            detail = f"points to plan {current.plan_id[:12]} again"
            self._do("rebuild", CURRENT_PLAN, detail, partial(self._store.write, CURRENT_PLAN, plan_pointer(current)))

    def _tokenizer(self, chain: list[Plan], bad: set[str]) -> None:
        plan = chain[-1]
        for path, sha256 in plan.tokenizer_objects.items():
            if path not in bad:
                continue
            if path.endswith("tokenizer.json"):
                data: bytes | None = plan.tokenizer_json.encode()
                origin = "from the copy in plan.json"
            else:
                data, origin = self._codebook_from_footers(sha256), "from the footer of a shard"
            if data is None or sha256_hex(data) != sha256:
                self._refuse(
                    path, f"no copy with sha256 {sha256[:12]}… is left; it is never fitted anew, because ids would change their meaning"
                )
                continue
            self._do("restore", path, origin, partial(self._store.write, path, data))

    def _codebook_from_footers(self, sha256: str) -> bytes | None:
        for info in self._store.list("shards"):
            try:
                tables = ShardReader.open(self._store, info.path).codebook()
            except (FormatError, MissingObjectError):
                continue
            if tables:
                data = bytes(save({name: tables[name] for name in sorted(tables)}))
                if sha256_hex(data) == sha256:
                    return data
        return None

    def _parts(self, chain: list[Plan], bad: set[str]) -> None:
        for plan in chain:
            damaged = [part for part in plan.parts if part.path in bad]
            if not damaged:
                continue
            if plan.generation > 1:
                for part in damaged:
                    self._refuse(part.path, "it is part of a retry plan, which cannot be listed again; give the dataset a new OUT")
                continue
            try:
                rebuilt = self._relist(plan, damaged)
            except (SourceError, PlanError, TokenshardsError) as error:
                for part in damaged:
                    self._refuse(part.path, f"the source cannot be listed again ({error}); pass its place with --source")
                continue
            for part in damaged:
                data = rebuilt.get(part.path)
                if data is None:
                    self._refuse(part.path, "the source has changed since the plan: the digest of the relisted part differs")
                elif sha256_hex(data) == part.sha256:
                    self._do("rebuild", part.path, "relisted, same digest", partial(self._store.write, part.path, data))
                else:
                    self._refuse(
                        part.path, "relisted with the same inputs, but this version of pyarrow writes other bytes; use the one in plan.json"
                    )

    def _relist(self, plan: Plan, damaged: list[PlanPart]) -> dict[str, bytes]:
        options = dict(plan.source["options"])
        config = SourceConfig(**{**options, "meta": tuple(options["meta"]), "storage_options": self._source_options})
        source = open_source(self._source_url or str(plan.source["url"]), config)
        wanted = {part.path: part for part in damaged}
        with Listing(source.list_rows(), order_seed=plan.order_seed, keep_order=source.ordered, sample=0, sample_seed=0) as listing:
            asked = PlanConfig(shard_rows=plan.shard_rows, batch_rows=plan.batch_rows, codec=plan.codec, order_seed=plan.order_seed)
            return relist_parts(listing, plan, asked, config.tars_per_shard, wanted)

    def _shards(self, found: Verification, chain: list[Plan]) -> None:
        known = {plan.plan_id for plan in chain}
        for shard, plan_id in sorted(found.bad_shards.items()):
            if plan_id not in known:
                continue
            path = commit_path(plan_id, shard)
            self._do("drop", path, f"shard {shard} is done again by `tokenize`", partial(self._store.delete, path))
            self._tokenize_needed = True

    def _manifest(self, found: Verification, chain: list[Plan], bad: set[str]) -> None:
        damaged = any(name.startswith(("manifest", "shards-")) and name in bad for name in bad)
        complete = self._store.info(MANIFEST_POINTER) is not None
        if self._tokenize_needed:
            if complete:
                self._do(
                    "drop",
                    MANIFEST_POINTER,
                    "the dataset is incomplete until `tokenize` has done the dropped shards",
                    partial(self._store.delete, MANIFEST_POINTER),
                )
        elif damaged and not self._steps_refused():
            self._do("rebuild", MANIFEST_POINTER, "from the commits", partial(self._rebuild_manifests, chain))

    def _steps_refused(self) -> bool:
        return any(step.action == "refuse" for step in self._steps)

    def _rebuild_manifests(self, chain: list[Plan]) -> None:
        """Close every generation anew, oldest first; an incomplete one is left to `tokenize`."""
        self._store.delete(MANIFEST_POINTER)
        manifest = None
        for plan in chain:
            spec = plan.spec
            survey = survey_plan(self._store, plan, spec)
            if not survey.balanced:
                self._tokenize_needed = True
                return
            manifest = close_generation(self._store, plan, survey, spec, manifest)

    def _orphans(self, chain: list[Plan]) -> None:
        """Delete what no manifest and no commit references, once it is old enough to be nobody's work in progress."""
        referenced = self._referenced(chain)
        limit = time.time() - self._min_age_seconds
        plan_ids = {plan.plan_id for plan in chain}
        for info in [*self._store.list("", temporary=True)]:
            path = info.path
            name = path.rpartition("/")[2]
            folder, _, rest = path.partition("/")
            ours = (
                name.startswith(TEMPORARY_PREFIX)
                or (folder in ("shards", "quarantine") and path not in referenced)
                or (folder in ("plan", "commits") and "/" in rest and rest.partition("/")[0] not in plan_ids)
                or ("/" not in path and path.startswith(("manifest-", "shards-")) and path not in referenced)
            )
            if ours and info.modified_seconds < limit:
                self._do("delete", path, "nothing references it", partial(self._store.delete, path))

    def _referenced(self, chain: list[Plan]) -> set[str]:
        referenced: set[str] = set()
        pointer = load_pointer(self._store)
        if pointer is not None:
            manifest = load_manifest(self._store, pointer)
            referenced |= {manifest.name, manifest.table.path if manifest.table else ""}
            if manifest.parent:
                referenced.add(manifest.parent)
                parent = load_manifest(self._store, {"manifest": manifest.parent, "sha256": sha256_hex(self._store.read(manifest.parent))})
                referenced.add(parent.table.path if parent.table else "")
        for plan in chain:
            spec = plan.spec
            for entry in survey_plan(self._store, plan, spec).done.values():
                referenced |= {reference.path for reference in entry.references()}
        return referenced
