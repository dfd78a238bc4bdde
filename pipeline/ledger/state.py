"""Read as much of a dataset's state as possible: manifests, plans, plan parts, tokenizer. Damage is recorded and does not stop reading."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import CorruptObjectError, MissingObjectError
from tokenshards.pipeline.ledger.survey import Problem
from tokenshards.pipeline.planning.plan import CURRENT_PLAN, Plan, parse_plan, read_part
from tokenshards.pipeline.shards.manifest import MANIFEST_POINTER, Manifest, load_manifest, load_parent, load_pointer, read_sealed
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.split_index import refuse_split_root
from tokenshards.pipeline.storage.store import Store

__all__ = ["PLAN_NAMES", "DatasetState", "read_state"]

PLAN_NAMES = ("plan.json", "plan.copy.json")


@dataclass(slots=True, kw_only=True)
class DatasetState:
    """The readable part of a dataset's state, without the shards."""

    manifests: list[Manifest] = field(default_factory=list)
    """Manifests, newest first, up to the first one that cannot be read."""
    pointer_exists: bool = False
    plan_ids: list[str] = field(default_factory=list)
    """Plan ids of all generations, oldest first."""
    plans: dict[str, Plan] = field(default_factory=dict)
    """Plan id -> plan, for the plans that can be read from plan.json or from its copy."""
    intact_parts: frozenset[str] = frozenset()
    problems: list[Problem] = field(default_factory=list)

    @property
    def manifest(self) -> Manifest | None:
        """The manifest that readers use."""
        return self.manifests[0] if self.manifests else None

    @property
    def chain(self) -> list[Plan]:
        """The readable plans, oldest first."""
        return [self.plans[plan_id] for plan_id in self.plan_ids if plan_id in self.plans]

    @property
    def spec(self) -> TokenizerSpec | None:
        """The tokenizer's spec from the manifest, else from a plan; None if neither can be read."""
        return self.manifest.spec if self.manifest else self.chain[-1].spec if self.chain else None

    @property
    def tokenizer_objects(self) -> dict[str, str]:
        """sha256 of every object under tokenizer/."""
        return self.manifest.tokenizer_objects if self.manifest else self.chain[-1].tokenizer_objects if self.chain else {}

    def add(self, path: str, error: MissingObjectError | CorruptObjectError, named_by: str) -> None:
        """Add a problem for a damaged or missing object; `named_by` is the object that names it."""
        if isinstance(error, MissingObjectError):
            self.problems.append(Problem(path, "missing", f"{named_by} names it"))
        else:
            self.problems.append(Problem(path, "corrupt", error.detail))


def read_state(store: Store) -> DatasetState:
    """Read and check every state object. Raises FormatVersionError if a newer version wrote the dataset."""
    state = DatasetState()
    _read_manifests(store, state)
    if state.manifest is None or not state.manifest.published:
        _read_plans(store, state)
    _check_tokenizer(store, state)
    _check_parts(store, state)
    return state


def _read_manifests(store: Store, state: DatasetState) -> None:
    named_by = MANIFEST_POINTER
    try:
        state.pointer_exists = store.info(MANIFEST_POINTER) is not None
        pointer = load_pointer(store)
        if pointer is None:
            refuse_split_root(store)
        manifest = None if pointer is None else load_manifest(store, pointer)
        while manifest is not None:
            state.manifests.append(manifest)
            named_by = manifest.name
            manifest = load_parent(store, manifest)
    except (MissingObjectError, CorruptObjectError) as error:
        state.add(error.object_path, error, named_by)


def _read_plans(store: Store, state: DatasetState) -> None:
    readable, damage = _readable_plans(store)
    begun = {info.path.split("/")[1] for info in store.list("commits")}
    tip: str | None = None
    try:
        current = read_sealed(store, CURRENT_PLAN)
        tip = str(current["plan_id"])
        if tip in readable and sha256_hex(readable[tip].to_bytes()) != current["sha256"]:
            raise CorruptObjectError(CURRENT_PLAN, "the plan that this pointer names has another sha256")
    except MissingObjectError as error:
        if not state.pointer_exists and not begun:
            return  # planning never finished, so nothing depends on its remains
        state.add(CURRENT_PLAN, error, "every plan with commits")
    except CorruptObjectError as error:
        state.add(CURRENT_PLAN, error, "")
    closed = list(state.manifest.plan_ids) if state.manifest else []
    guessed = tip is None
    if guessed:  # take the newest generation that has commits
        candidates = [plan for plan in readable.values() if plan.plan_id in begun] or list(readable.values())
        tip = max(candidates, key=lambda plan: (plan.generation, plan.plan_id)).plan_id if candidates else None
    ids = [*readable[tip].earlier_plans, tip] if tip in readable else [*closed, *([tip] if tip else [])]
    ids = closed if len(closed) > len(ids) else ids
    state.plan_ids = list(dict.fromkeys([*ids, *(sorted(begun) if guessed else [])]))
    state.plans = {plan_id: readable[plan_id] for plan_id in state.plan_ids if plan_id in readable}
    for plan_id in state.plan_ids:
        for name in PLAN_NAMES:
            path = f"plan/{plan_id}/{name}"
            if path in damage:
                state.problems.append(damage[path])
            elif store.info(path) is None:
                state.problems.append(Problem(path, "missing", "every plan has it"))


def _readable_plans(store: Store) -> tuple[dict[str, Plan], dict[str, Problem]]:
    """Return the plans of all folders by id, and the damaged plan objects."""
    plans: dict[str, Plan] = {}
    damage: dict[str, Problem] = {}
    for info in store.list("plan"):
        folder, _, name = info.path.removeprefix("plan/").partition("/")
        if name in PLAN_NAMES:
            try:
                plan = parse_plan(store.read(info.path), info.path)
                if plan.plan_id != folder:
                    raise CorruptObjectError(info.path, f"it is plan {plan.plan_id[:12]}")
                plans[folder] = plan
            except CorruptObjectError as error:
                damage[info.path] = Problem(info.path, "corrupt", error.detail)
    return plans, damage


def _check_tokenizer(store: Store, state: DatasetState) -> None:
    for path, sha256 in state.tokenizer_objects.items():
        try:
            seen = sha256_hex(store.read(path))
            if seen != sha256:
                raise CorruptObjectError(path, f"sha256 is {seen[:12]}…, expected {sha256[:12]}…")
        except (MissingObjectError, CorruptObjectError) as error:
            state.add(path, error, "the plan")


def _check_parts(store: Store, state: DatasetState) -> None:
    intact = set()
    for plan in state.chain:
        for part in plan.parts:
            try:
                read_part(store, part)
                intact.add(part.path)
            except (MissingObjectError, CorruptObjectError) as error:
                state.add(part.path, error, plan.path)
    state.intact_parts = frozenset(intact)
