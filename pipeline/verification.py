"""`verify`: every state object, every checksum, every planned input accounted for; names each damaged object."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from pipeline.accounting import Problem, object_sizes
from pipeline.canonical import keyed_hash64, sha256_hex
from pipeline.errors import FormatError, MissingObjectError, PlanError, TokenizerError
from pipeline.plan import CURRENT_PLAN, Plan, load_plan, parse_plan, part_digest, read_part, rows_of_shard
from pipeline.shards.commit import Commit, ObjectRef, commit_path
from pipeline.shards.manifest import MANIFEST_POINTER, Manifest, ShardEntry, load_manifest, load_pointer
from pipeline.shards.reader import ShardReader
from pipeline.shards.spec import TokenizerSpec
from pipeline.shards.writer import read_quarantine
from pipeline.storage import Store
from pipeline.tokenizers.directory import load_tokenizer

__all__ = ["Verification", "find_plans", "verify_dataset"]

TOKENIZER_FOLDER = "tokenizer"


@dataclass(slots=True)
class Verification:
    """What was checked, and what was found."""

    shards_checked: int = 0
    rows_checked: int = 0
    complete: bool = False
    problems: list[Problem] = field(default_factory=list)
    bad_shards: dict[int, str] = field(default_factory=dict)
    """Shard -> plan id, for shards whose data, quarantine or commit is damaged: what `repair` drops."""

    @property
    def ok(self) -> bool:
        """True when nothing is damaged and the dataset is complete."""
        return not self.problems and self.complete

    def add(self, path: str, kind: str, detail: str) -> None:
        """Note one damaged object, once."""
        if all(problem.object != path for problem in self.problems):
            self.problems.append(Problem(path, kind, detail))


@dataclass(slots=True)
class _ShardCheck:
    """The outcome of one shard, gathered in a thread and added on the main one."""

    shard: int
    plan_id: str
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    id_hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))


def verify_dataset(
    store: Store,
    *,
    sample: int | None = None,
    first_shard: int = 0,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Check a dataset; `sample` checks the bytes of so many random shards only, `first_shard` continues a check that was stopped.

    `on_shard(done, total)` is called after each shard. Raises PlanError when there is nothing to verify.
    """
    found = Verification()
    manifest = _check_manifest(store, found)
    plans = _check_plans(store, manifest, found)
    if not plans and manifest is None:
        if found.problems:
            return found
        raise PlanError(f"{store.url}: neither a plan nor a manifest is here; expected the OUT folder of `tokenshards tokenize`")
    spec = _check_tokenizer(store, plans, manifest, found)
    sizes = object_sizes(store, "shards", "quarantine", "commits")
    tasks = [(plan, shard) for plan in plans for shard in plan.shard_numbers if shard >= first_shard]
    if sample is not None and sample < len(tasks):
        tasks = sorted(random.Random(0).sample(tasks, sample), key=lambda task: task[1])
    entries = {entry.shard: entry for entry in manifest.shards} if manifest else {}
    parts = _check_parts(store, plans, found)
    hashes = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if store.is_local else 16) as pool:
        work = iter(tasks)

        def check(task: tuple[Plan, int]) -> _ShardCheck:
            plan, shard = task
            return _check_shard(store, plan, shard, entries.get(shard), sizes, spec, parts)

        done = 0
        while chunk := list(islice(work, 64)):  # bounded: a finished check holds the id hashes of its shard
            for outcome in pool.map(check, chunk):
                found.shards_checked += 1
                found.rows_checked += outcome.rows
                hashes.append(outcome.id_hashes)
                for problem in outcome.problems:
                    found.add(problem.object, problem.kind, problem.detail)
                    found.bad_shards[outcome.shard] = outcome.plan_id
                done += 1
                on_shard(done, len(tasks))
    _check_unique(store, hashes, found)
    found.complete = manifest is not None
    if manifest is None and not any(problem.object.startswith("manifest") for problem in found.problems):
        found.add(MANIFEST_POINTER, "incomplete", "the dataset was never completed; run the same `tokenshards tokenize` again")
    return found


def _check_manifest(store: Store, found: Verification) -> Manifest | None:
    try:
        pointer = load_pointer(store)
        return None if pointer is None else load_manifest(store, pointer)
    except MissingObjectError as error:
        found.add(_below(store, error.object_path), "missing", "the manifest names it")
    except FormatError as error:
        found.add(getattr(error, "object_path", MANIFEST_POINTER), "corrupt", str(error))
    return None


def _below(store: Store, path: str) -> str:
    return path.removeprefix(store.root).lstrip("/")


def find_plans(store: Store) -> dict[str, list[str]]:
    """Return plan id -> its plan.json and copy that exist, for every plan folder."""
    found: dict[str, list[str]] = {}
    for info in store.list("plan"):
        folder, _, name = info.path.removeprefix("plan/").partition("/")
        if name in ("plan.json", "plan.copy.json"):
            found.setdefault(folder, []).append(info.path)
    return found


def _check_plans(store: Store, manifest: Manifest | None, found: Verification) -> list[Plan]:
    """Return the readable plans of all generations; damage to one copy of a plan.json is noted, the other copy is used."""
    ids: list[str] = []
    try:
        current = load_plan(store)
        if current is not None:
            ids = [*current.earlier_plans, current.plan_id]
        elif manifest is not None or find_plans(store) and store.info(CURRENT_PLAN) is None and _has_commits(store):
            found.add(CURRENT_PLAN, "missing", "a completed dataset has a current plan")
    except (FormatError, PlanError) as error:
        found.add(getattr(error, "object_path", CURRENT_PLAN), "corrupt", str(error))
    if not ids:
        ids = list(manifest.plan_ids) if manifest is not None else [name for name in find_plans(store) if _has_commits(store, name)]
    plans = []
    for plan_id in ids:
        readable = None
        for name in ("plan.json", "plan.copy.json"):
            path = f"plan/{plan_id}/{name}"
            try:
                readable = parse_plan(store.read(path), path)
            except MissingObjectError:
                found.add(path, "missing", "every plan has it")
            except FormatError as error:
                found.add(path, "corrupt", str(error))
        if readable is not None:
            plans.append(readable)
    return plans


def _has_commits(store: Store, plan_id: str = "") -> bool:
    return next(iter(store.list(f"commits/{plan_id}".rstrip("/"))), None) is not None


def _check_tokenizer(store: Store, plans: list[Plan], manifest: Manifest | None, found: Verification) -> TokenizerSpec | None:
    objects = plans[0].tokenizer_objects if plans else (manifest.tokenizer_objects if manifest else {})
    for path, sha256 in objects.items():
        try:
            seen = sha256_hex(store.read(path))
            if seen != sha256:
                found.add(path, "corrupt", f"sha256 is {seen[:12]}…, expected {sha256[:12]}…")
        except MissingObjectError:
            found.add(path, "missing", "the plan names it")
    if manifest is not None:
        return manifest.spec
    try:
        return load_tokenizer(store, TOKENIZER_FOLDER).spec
    except (FormatError, MissingObjectError, TokenizerError):
        return None  # noted above


def _check_parts(store: Store, plans: list[Plan], found: Verification) -> dict[str, bytes]:
    """Check every plan part; return the bytes of the intact ones of small plans, so that shards need not read them again."""
    intact: dict[str, bytes] = {}
    for plan in plans:
        for part in plan.parts:
            try:
                data = read_part(store, part)
                if part_digest(data) != part.digest:
                    found.add(part.path, "corrupt", "its digest is not the one that plan.json names")
                    continue
                intact[part.path] = data if len(plan.parts) <= 64 else b""
            except MissingObjectError:
                found.add(part.path, "missing", "plan.json names it")
            except FormatError as error:
                found.add(part.path, "corrupt", str(error))
    return intact


def _check_shard(
    store: Store,
    plan: Plan,
    shard: int,
    entry: ShardEntry | None,
    sizes: dict[str, int],
    spec: TokenizerSpec | None,
    parts: dict[str, bytes],
) -> _ShardCheck:
    check = _ShardCheck(shard, plan.plan_id)
    path = commit_path(plan.plan_id, shard)
    commit = _read_commit(store, path, plan, shard, entry, check)
    references = _references(commit, entry)
    contents = {}
    for name, reference in references.items():
        data = _read_checked(store, reference, sizes, check)
        if data is not None:
            contents[name] = data
    expected_rows = commit.rows if commit else entry.rows if entry else None
    ids: list[str] = []
    if "data" in contents and spec is not None:
        ids = _check_data(references["data"].path, contents["data"], spec, expected_rows, check)
        check.rows = len(ids)
    quarantined: list[str] = []
    if "quarantine" in contents:
        quarantined = _check_quarantine(references["quarantine"].path, contents["quarantine"], commit, check)
    if not check.problems and commit is not None and plan.part_of(shard).path in parts:
        _check_accounts(store, plan, shard, path, ids, quarantined, parts, check)
    return check


def _read_commit(store: Store, path: str, plan: Plan, shard: int, entry: ShardEntry | None, check: _ShardCheck) -> Commit | None:
    try:
        data = store.read(path)
        commit = Commit.from_bytes(data, path)
    except MissingObjectError:
        if entry is not None:
            check.problems.append(Problem(path, "missing", "the manifest names the shard"))
        return None
    except FormatError as error:
        check.problems.append(Problem(path, "corrupt", str(error)))
        return None
    if (commit.plan_id, commit.shard) != (plan.plan_id, shard):
        check.problems.append(Problem(path, "corrupt", f"it is the commit of shard {commit.shard} of plan {commit.plan_id[:12]}"))
        return None
    if entry is not None and sha256_hex(data) != entry.commit_sha256:
        check.problems.append(
            Problem(path, "corrupt", f"sha256 is {sha256_hex(data)[:12]}…; the manifest names {entry.commit_sha256[:12]}…")
        )
    return commit


def _references(commit: Commit | None, entry: ShardEntry | None) -> dict[str, ObjectRef]:
    """Return the objects of a shard by role; a damaged commit does not hide them where the manifest names them too."""
    if commit is not None:
        return {name: ref for name, ref in (("data", commit.data), ("quarantine", commit.quarantine)) if ref is not None}
    if entry is None:
        return {}
    return {ref.path.partition("/")[0].replace("shards", "data"): ref for ref in entry.references()}


def _read_checked(store: Store, reference: ObjectRef, sizes: dict[str, int], check: _ShardCheck) -> bytes | None:
    path = reference.path
    if path not in sizes:
        check.problems.append(Problem(path, "missing", f"its commit names it with {reference.size} bytes"))
        return None
    if sizes[path] != reference.size:
        check.problems.append(Problem(path, "wrong_size", f"it has {sizes[path]} bytes, expected {reference.size}"))
        return None
    try:
        data = store.read(path)
    except MissingObjectError:
        check.problems.append(Problem(path, "missing", "it vanished after it was listed"))
        return None
    if sha256_hex(data) != reference.sha256:
        check.problems.append(Problem(path, "corrupt", f"sha256 is {sha256_hex(data)[:12]}…, expected {reference.sha256[:12]}…"))
        return None
    return data


def _check_data(path: str, data: bytes, spec: TokenizerSpec, rows: int | None, check: _ShardCheck) -> list[str]:
    try:
        reader = ShardReader.open(data, path)
        if reader.fingerprint != spec.fingerprint:
            check.problems.append(
                Problem(path, "fingerprint", f"made by {reader.fingerprint[:12]}, the dataset by {spec.fingerprint[:12]}")
            )
        content = reader.read()
    except FormatError as error:
        check.problems.append(Problem(path, "corrupt", str(error)))
        return []
    ids: list[str] = content.table["sample_id"].to_pylist()
    if rows is not None and len(ids) != rows:
        check.problems.append(Problem(path, "rows", f"{len(ids)} rows, expected {rows}"))
    views = content.table["view"].to_pylist()
    check.id_hashes = _hash_ids(ids, views)
    return ids


def _hash_ids(ids: list[str], views: list[int]) -> npt.NDArray[np.uint64]:
    keys = (f"{view}\0{sample_id}" for sample_id, view in zip(ids, views, strict=True))
    return np.fromiter((keyed_hash64("verify", key) for key in keys), np.uint64, len(ids))


def _check_quarantine(path: str, data: bytes, commit: Commit | None, check: _ShardCheck) -> list[str]:
    try:
        rows = read_quarantine(data)
    except FormatError as error:
        check.problems.append(Problem(path, "corrupt", str(error)))
        return []
    if commit is not None and len(rows) != commit.quarantined:
        check.problems.append(Problem(path, "rows", f"{len(rows)} rows, expected {commit.quarantined}"))
    return [row["sample_id"] for row in rows]


def _check_accounts(
    store: Store,
    plan: Plan,
    shard: int,
    path: str,
    ids: list[str],
    quarantined: list[str],
    parts: dict[str, bytes],
    check: _ShardCheck,
) -> None:
    """Every planned file is exactly once a row or a quarantine row; of slices, the counts agree."""
    part = plan.part_of(shard)
    planned = rows_of_shard(parts[part.path] or read_part(store, part), plan, shard)
    got = sorted([*ids, *quarantined])
    if all(row.kind == "file" for row in planned):
        wanted = sorted(row.sample_id for row in planned)
        if got != wanted:
            odd = sorted(set(wanted) ^ set(got))[:3]
            check.problems.append(Problem(path, "accounts", f"{len(got)} inputs recorded, {len(wanted)} planned; they differ in {odd}"))
    elif all(row.inputs >= 0 for row in planned) and sum(row.inputs for row in planned) != len(got):
        check.problems.append(Problem(path, "accounts", f"{len(got)} inputs recorded, {sum(row.inputs for row in planned)} planned"))


def _check_unique(store: Store, hashes: list[npt.NDArray[np.uint64]], found: Verification) -> None:
    everything = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    everything.sort()
    twice = int(np.count_nonzero(everything[1:] == everything[:-1]))
    if twice:
        found.add("shards/", "duplicate_ids", f"{twice} (sample_id, view) pairs occur more than once in {store.url}")
