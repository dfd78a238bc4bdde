"""Check one shard against its commit, the manifest and the plan: every byte, every row, every planned input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.canonical import keyed_hashes64, sha256_hex
from tokenshards.pipeline.errors import CorruptObjectError, FormatError, MissingObjectError
from tokenshards.pipeline.ledger.mask_check import count_masks, differs_from_commit
from tokenshards.pipeline.ledger.survey import Problem, size_problem
from tokenshards.pipeline.planning.plan import Plan, read_shard_rows
from tokenshards.pipeline.shards.commit import Commit, ObjectRef, commit_path, read_commit
from tokenshards.pipeline.shards.compact.model_file import models_of
from tokenshards.pipeline.shards.manifest import ShardEntry
from tokenshards.pipeline.shards.masks import MASK, MaskTotals
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.writer import read_quarantine
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["ShardCheck", "ShardChecker"]


@dataclass(slots=True)
class ShardCheck:
    """The findings about one shard."""

    shard: int
    plan_id: str
    exists: bool = False
    """Whether the shard has a commit, even a damaged one, or an entry in the manifest."""
    rows: int = 0
    masks: MaskTotals | None = None
    """Counts of the masks; None without masks."""
    problems: list[Problem] = field(default_factory=list)
    references: list[ObjectRef] = field(default_factory=list)
    """Data and quarantine objects that the commit or the manifest names."""
    id_hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """64 bits of each (sample_id, view), to find ids that occur in two shards."""

    def add(self, path: str, kind: str, detail: str) -> None:
        """Add a problem with an object."""
        self.problems.append(Problem(path, kind, detail))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardChecker:
    """Checks shards one by one; thread-safe."""

    store: Store
    spec: TokenizerSpec
    sizes: Mapping[str, int]
    """Listed size of every data and quarantine object."""
    entries: dict[int, ShardEntry]
    """The manifest's shard table; empty without a manifest."""
    intact_parts: frozenset[str]
    """Paths of the undamaged plan parts."""

    def check(self, plan_id: str, shard: int, plan: Plan | None) -> ShardCheck:
        """Check one shard; `plan` is None if the plan cannot be read."""
        check = ShardCheck(shard, plan_id)
        entry = self.entries.get(shard)
        commit = self._commit(entry, check)
        check.exists = commit is not None or entry is not None or bool(check.problems)
        data, quarantine = _objects(commit, entry)
        named = {data, quarantine} | ({commit.data, commit.quarantine} if commit is not None else set())
        check.references = [reference for reference in named if reference is not None]
        recorded: list[str] = []
        views = 1 if plan is None else plan.views.count
        for reference, read in ((data, partial(self._read_data, views)), (quarantine, _read_quarantine)):
            content = None if reference is None else self._read(reference, check)
            if reference is not None and content is not None:
                recorded += read(reference.path, content, commit, check)
        if not check.problems and commit is not None and plan is not None and plan.part_of(shard).path in self.intact_parts:
            self._check_accounts(plan, commit, recorded, check)
        return check

    def _commit(self, entry: ShardEntry | None, check: ShardCheck) -> Commit | None:
        path = commit_path(check.plan_id, check.shard)
        if entry is not None and not entry.commit_sha256:
            return None  # a published copy has no commits
        try:
            commit, sha256 = read_commit(self.store, check.plan_id, check.shard)
        except MissingObjectError:
            if entry is not None:
                check.add(path, "missing", "the manifest names the shard")
            return None
        except CorruptObjectError as error:
            check.add(path, "corrupt", error.detail)
            return None
        if entry is not None and sha256 != entry.commit_sha256 and not _same_work(commit, entry):
            check.add(path, "corrupt", f"sha256 is {sha256[:12]}…; the manifest names {entry.commit_sha256[:12]}…")
        return commit

    def _read(self, reference: ObjectRef, check: ShardCheck) -> bytes | None:
        wrong = size_problem(reference, self.sizes)
        if wrong is not None:
            check.problems.append(wrong)
            return None
        try:
            data = self.store.read(reference.path)
        except MissingObjectError:
            check.add(reference.path, "missing", "it disappeared after the listing")
            return None
        seen = sha256_hex(data)
        if seen != reference.sha256:
            check.add(reference.path, "corrupt", f"sha256 is {seen[:12]}…, expected {reference.sha256[:12]}…")
            return None
        return data

    def _read_data(self, views: int, path: str, data: bytes, commit: Commit | None, check: ShardCheck) -> list[str]:
        try:
            reader = ShardReader.open(data, path, models=models_of(self.store))
            content = reader.read([name for name in reader.row_columns if name != MASK])
            check.masks = count_masks(reader)
        except (FormatError, MissingObjectError) as error:  # also a model of its codec that is lost with all copies
            check.add(path, "corrupt", str(error))
            return []
        if reader.fingerprint != self.spec.fingerprint:
            check.add(path, "fingerprint", f"made by tokenizer {reader.fingerprint[:12]}, the dataset by {self.spec.fingerprint[:12]}")
        if commit is not None and len(content) != commit.rows:
            check.add(path, "rows", f"{counted(len(content), 'row')}; its commit says {commit.rows}")
        if commit is not None and (odd := differs_from_commit(check.masks, commit)):
            check.add(path, "masks", odd)
        sample_ids: list[str] = content.table["sample_id"].to_pylist()
        numbers = content.table["view"].to_pylist()
        keys = (f"{view}\0{sample_id}" for sample_id, view in zip(sample_ids, numbers, strict=True))
        check.id_hashes = np.array(keyed_hashes64("verify", keys), np.uint64)
        check.rows = len(sample_ids)
        inputs = sample_ids[::views]
        if views > 1 and (numbers, sample_ids) != ([*range(views)] * len(inputs), [name for name in inputs for _ in range(views)]):
            check.add(path, "views", f"its rows are not {views} views, in order, of one image after the other")
        return inputs

    def _check_accounts(self, plan: Plan, commit: Commit, recorded: list[str], check: ShardCheck) -> None:
        """Check that every planned file is exactly once a row or a quarantine row, and that the counts of counted slices agree."""
        planned = read_shard_rows(self.store, plan, check.shard)
        path = commit_path(plan.plan_id, check.shard)
        seen = len(recorded) + commit.absent + commit.left_out_count
        if commit.inputs_seen != seen:
            parts = f"{len(recorded)} recorded, {commit.absent} absent and {commit.left_out_count} left out"
            check.add(path, "accounts", f"{parts} make {counted(seen, 'input')}; its commit has seen {commit.inputs_seen}")
        if all(row.kind in ("file", "absent") for row in planned):
            wanted = sorted(row.sample_id for row in planned if row.kind == "file")
            if sorted(recorded) != wanted:
                odd = sorted(set(wanted) ^ set(recorded))[:3]
                check.add(path, "accounts", f"{counted(len(recorded), 'input')} recorded, {len(wanted)} planned; they differ in {odd}")
        elif all(row.inputs >= 0 for row in planned):
            inputs = sum(row.inputs for row in planned)
            if inputs != len(recorded) + commit.absent:
                check.add(path, "accounts", f"{counted(len(recorded), 'input')} recorded and {commit.absent} absent, {inputs} planned")


def _same_work(commit: Commit, entry: ShardEntry) -> bool:
    """Return whether commit and entry have the same content: a joined driver may redo a shard and put its commit after the manifest."""
    counts = (commit.rows, commit.quarantined, commit.inputs_seen, commit.absent, commit.left_out_count)
    return commit.data == entry.data and counts == (entry.rows, entry.quarantined, entry.inputs_seen, entry.absent, entry.left_out)


def _objects(commit: Commit | None, entry: ShardEntry | None) -> tuple[ObjectRef | None, ObjectRef | None]:
    """Return the data and quarantine objects of a shard from the manifest, which readers follow, or else from the commit."""
    if entry is not None:
        return entry.data, entry.quarantine
    return (None, None) if commit is None else (commit.data, commit.quarantine)


def _read_quarantine(path: str, data: bytes, commit: Commit | None, check: ShardCheck) -> list[str]:
    try:
        rows = read_quarantine(data, path)
    except FormatError as error:
        check.add(path, "corrupt", str(error))
        return []
    if commit is not None and len(rows) != commit.quarantined:
        check.add(path, "rows", f"{counted(len(rows), 'row')}; its commit says {commit.quarantined}")
    return [row["sample_id"] for row in rows]
