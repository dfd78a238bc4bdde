"""`repair`: restore damaged objects from the intact ones. Without `apply` it is a dry run; it deletes only unreferenced objects.

For a damaged data, quarantine or commit object the commit is dropped, so that `tokenize` redoes the shard. A manifest is rebuilt from the
commits, a plan part from the source if its digest agrees, plan.json from its copy, the tokenizer from plan.json and a shard's footer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from safetensors.numpy import save

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import FormatError, MissingObjectError, TokenshardsError
from tokenshards.pipeline.ledger.closing import close_generation
from tokenshards.pipeline.ledger.heartbeat import refuse_beside_live_run
from tokenshards.pipeline.ledger.orphans import find_orphans, foreign_files
from tokenshards.pipeline.ledger.replaced import drop_commit
from tokenshards.pipeline.ledger.state import PLAN_NAMES
from tokenshards.pipeline.ledger.survey import Survey, survey_plan
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import CURRENT_PLAN, plan_pointer
from tokenshards.pipeline.planning.relisting import Relisting
from tokenshards.pipeline.shards.commit import commit_path
from tokenshards.pipeline.shards.compact.codec import CompactCodec
from tokenshards.pipeline.shards.compact.model_file import model_bytes
from tokenshards.pipeline.shards.manifest import MANIFEST_POINTER
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.storage.store import Store

__all__ = ["Repair", "RepairStep", "repair_dataset"]


@dataclass(frozen=True, slots=True)
class RepairStep:
    """One step; `action` is `drop`, `restore`, `rebuild`, `delete`, or `refuse` for damage that cannot be repaired."""

    action: str
    object: str
    detail: str


@dataclass(slots=True)
class Repair:
    """The steps of a repair, done or planned, and whether `tokenize` must run afterwards."""

    applied: bool
    steps: list[RepairStep] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    """Files in shards/ and quarantine/ that are not ours: never deleted, although a glob reads them."""
    tokenize_needed: bool = False

    @property
    def refused(self) -> list[RepairStep]:
        """The `refuse` steps; `detail` is the reason."""
        return [step for step in self.steps if step.action == "refuse"]


def repair_dataset(
    store: Store,
    *,
    apply: bool,
    min_age_seconds: float = 86_400.0,
    source_url: str | None = None,
    source_options: dict[str, Any] | None = None,
) -> Repair:
    """Plan the repair of a dataset and, with `apply`, carry it out; raises LiveRunError beside a live run.

    All steps are decided before the first one is carried out, so a dry run shows exactly the steps of `apply`.
    """
    if apply:
        refuse_beside_live_run(store, "repair")
    return _Repairer(store, apply, min_age_seconds, source_url, source_options or {}).run()


class _Repairer:
    def __init__(self, store: Store, apply: bool, min_age_seconds: float, source_url: str | None, source_options: dict[str, Any]) -> None:
        self._store = store
        self._min_age_seconds = min_age_seconds
        self._found = verify_dataset(store)
        self._state = self._found.state
        self._damaged = self._found.damaged
        self._relisting = Relisting(store, self._state.chain, source_url, source_options) if self._state.chain else None
        self._operations: list[Callable[[], object]] = []
        self._addressed: set[str] = set()
        self._repair = Repair(applied=apply)

    def run(self) -> Repair:
        self._plans()
        self._tokenizer()
        self._parts()
        self._shards()
        self._manifest()
        for problem in self._found.problems:
            if problem.object in self._damaged - self._addressed:
                self._refuse(problem.object, f"no intact object can restore it ({problem.detail}); tokenize into a new OUT")
        self._repair.foreign = sorted(foreign_files(self._store))
        if not self._damaged:
            for path in find_orphans(self._store, self._state, self._found.referenced, self._min_age_seconds):
                self._do("delete", path, "nothing references it", partial(self._store.delete, path))
        if self._repair.applied:
            for operation in self._operations:
                operation()
        return self._repair

    def _do(self, action: str, path: str, detail: str, operation: Callable[[], object]) -> None:
        self._repair.steps.append(RepairStep(action, path, detail))
        self._operations.append(operation)
        self._addressed.add(path)

    def _refuse(self, path: str, detail: str) -> None:
        self._repair.steps.append(RepairStep("refuse", path, detail))
        self._addressed.add(path)

    def _write(self, action: str, path: str, detail: str, data: bytes) -> None:
        self._do(action, path, detail, partial(self._store.write, path, data))

    def _plans(self) -> None:
        for plan_id in self._state.plan_ids:
            plan = self._state.plans.get(plan_id)
            for name in PLAN_NAMES:
                path = f"plan/{plan_id}/{name}"
                if path not in self._damaged:
                    continue
                if plan is None:
                    self._refuse(path, "neither plan.json nor its copy can be read, and no other object holds the plan")
                else:
                    self._write("restore", path, "from its copy", plan.to_bytes())
        if CURRENT_PLAN in self._damaged:
            plan = self._state.plans.get(self._state.plan_ids[-1]) if self._state.plan_ids else None
            if plan is None:
                self._refuse(CURRENT_PLAN, "the plan that it must name cannot be read")
            else:
                self._write("rebuild", CURRENT_PLAN, f"points to plan {plan.plan_id[:12]} again", plan_pointer(plan))

    def _tokenizer(self) -> None:
        for path, sha256 in self._state.tokenizer_objects.items():
            if path not in self._damaged:
                continue
            if path.endswith(".json"):
                texts = (plan.tokenizer_json.encode() for plan in self._state.chain)
                data, origin = next((text for text in texts if sha256_hex(text) == sha256), None), "from the copy in plan.json"
            else:
                data, origin = self._object_from_footers(sha256), "from the footer of a shard"
            if data is None:
                why = f"no copy with sha256 {sha256[:12]}… is left; a new fit would change the meaning of the ids"
                self._refuse(path, why)
            else:
                self._write("restore", path, origin, data)

    def _object_from_footers(self, sha256: str) -> bytes | None:
        """Return the codebook or the model of a codec of which some shard has a copy."""
        for info in self._store.list("shards"):
            try:
                reader = ShardReader.open(self._store, info.path)
                tables = reader.codebook()
            except (FormatError, MissingObjectError):
                continue
            copies: list[bytes] = [save({name: tables[name] for name in sorted(tables)})] if tables else []
            if isinstance(reader.codec, CompactCodec):
                copies.append(model_bytes(reader.codec.model))
            for data in copies:
                if sha256_hex(data) == sha256:
                    return data
        return None

    def _parts(self) -> None:
        for plan in self._state.chain:
            damaged = [part for part in plan.parts if part.path in self._damaged]
            if not damaged or self._relisting is None:
                continue
            try:
                rebuilt = self._relisting.parts(plan, damaged)
            except TokenshardsError as error:
                for part in damaged:
                    self._refuse(
                        part.path, f"its inputs cannot be listed again ({error}); if the source has moved, give its new place with --source"
                    )
                continue
            for part in damaged:
                data = rebuilt.get(part.path)
                if data is None:
                    self._refuse(part.path, "the source has changed since the plan: the digest of the remade part differs")
                elif sha256_hex(data) != part.sha256:
                    why = "the remade part has the same inputs but other bytes; use the tokenshards and pyarrow that the commits name"
                    self._refuse(part.path, why)
                else:
                    self._write("rebuild", part.path, "listed again, same digest", data)

    def _shards(self) -> None:
        for shard, plan_id in sorted(self._found.bad_shards.items()):
            path = commit_path(plan_id, shard)
            objects = [problem.object for problem in self._found.problems if f"/{shard:08d}" in problem.object]
            why = self._why_not_redone(plan_id, shard)
            if why is not None:
                self._refuse(path, f"shard {shard} must be redone ({', '.join(objects)}), but cannot be: {why}")
            else:
                why = f"`tokenize` will redo shard {shard} ({', '.join(objects)})"
                named = self._found.named_by_bad_shards.get(shard, [])
                self._do("drop", path, why, partial(drop_commit, self._store, plan_id, shard, named))
                self._repair.tokenize_needed = True
            self._addressed.update(objects)

    def _why_not_redone(self, plan_id: str, shard: int) -> str | None:
        plan = self._state.plans.get(plan_id)
        if self._state.manifest is not None and self._state.manifest.published:
            return "this is a published copy; copy the object again from its original place"
        if plan is None or self._relisting is None or len(self._state.chain) < len(self._state.plan_ids):
            return "a plan.json is lost"
        lost = [step.object for step in self._repair.refused if step.object in (*plan.tokenizer_objects, plan.part_of(shard).path)]
        if lost:
            return f"{lost[0]} is lost"
        return self._relisting.lost_if_redone(plan, shard)

    def _manifest(self) -> None:
        damaged = sorted(path for path in self._damaged if path.startswith(("manifest", "shards-")))
        if self._pointer_is_lost():
            damaged.append(MANIFEST_POINTER)
        if damaged and not self._state.chain:
            for path in damaged:
                self._refuse(path, "it is made from plan and commits, which do not exist here: copy it again from its original place")
            return
        if damaged and not self._repair.tokenize_needed:
            if len(self._state.chain) < len(self._state.plan_ids):
                for path in damaged:
                    self._refuse(path, "it is made from commits and plan, but a plan.json is lost")
                return
            surveys = [survey_plan(self._store, plan, plan.spec) for plan in self._state.chain]
            if all(survey.balanced for survey in surveys):
                detail = f"from the commits ({', '.join(damaged)})"
                self._do("rebuild", MANIFEST_POINTER, detail, partial(self._rebuild_manifests, surveys))
                self._addressed.update(damaged)
                return
        if self._state.pointer_exists and (damaged or self._repair.tokenize_needed):
            detail = "the dataset is incomplete until `tokenize` has done the missing shards"
            self._do("drop", MANIFEST_POINTER, detail, partial(self._store.delete, MANIFEST_POINTER))
            self._addressed.update(damaged)
        self._repair.tokenize_needed |= bool(damaged) or not self._found.complete

    def _pointer_is_lost(self) -> bool:
        """Return whether a manifest exists without a pointer: the pointer was deleted, or the driver died before writing it."""
        return not self._state.pointer_exists and any(info.path.startswith("manifest-") for info in self._store.list())

    def _rebuild_manifests(self, surveys: list[Survey]) -> None:
        """Close every generation again, oldest first."""
        self._store.delete(MANIFEST_POINTER)
        manifest = None
        for survey in surveys:
            manifest = close_generation(self._store, survey.plan, survey, survey.plan.spec, manifest)
