"""One survey of plan, commits and objects, used by the audit and by reports: does the account of every planned input balance?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import CorruptObjectError, MissingObjectError
from tokenshards.pipeline.ledger.replaced import is_dropped, read_dropped
from tokenshards.pipeline.planning.plan import Plan
from tokenshards.pipeline.records import Untaken
from tokenshards.pipeline.shards.commit import Commit, ObjectRef, commit_path, merge_labels, read_commit, unpack_counts
from tokenshards.pipeline.shards.manifest import Manifest
from tokenshards.pipeline.shards.masks import MaskTotals
from tokenshards.pipeline.shards.shard_table import ShardEntry, ShardTable
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.object_sizes import object_sizes
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.thread_map import map_in_order

__all__ = ["Problem", "Survey", "is_commit", "manifest_histograms", "size_problem", "survey_plan"]

READ_THREADS = 16
READ_AHEAD = 256
"""Most commits that are read but not counted yet; each may hold thousands of labels."""
_COMMIT_NAME = re.compile(r"^commits/[0-9a-f]+/(\d{8})\.json$")


@dataclass(frozen=True, slots=True)
class Problem:
    """One damaged or missing object."""

    object: str
    kind: str
    detail: str


@dataclass(slots=True, kw_only=True)
class Survey:
    """The progress of a plan: shards done, problems, and totals over the valid commits."""

    plan: Plan
    done: ShardTable = field(default_factory=ShardTable)
    """Shards with a valid commit, ascending."""
    problems: list[Problem] = field(default_factory=list)
    replaced: list[ObjectRef] = field(default_factory=list)
    """Objects of invalid commits and of commits that `repair` dropped; they are removed once the manifest is written."""
    dropped: list[str] = field(default_factory=list)
    """Records of dropped commits."""
    rows: int = 0
    quarantined: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    inputs_seen: int = 0
    untaken: Untaken = field(default_factory=Untaken)
    image_remarks: Counter[str] = field(default_factory=Counter)
    """Remark of the decoder -> number of images that were taken all the same."""
    bytes_in: int = 0
    bytes_shards: int = 0
    token_bytes: int = 0
    id_count: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    labels: dict[Any, int] = field(default_factory=dict)
    masked_rows: int = 0
    mask_pixels: Counter[int] = field(default_factory=Counter)
    histograms: list[npt.NDArray[np.int64]] | None = field(default_factory=list)

    @property
    def to_do(self) -> list[int]:
        """Shards without a valid commit, ascending."""
        waiting = np.ones(self.plan.shards, np.bool_)
        waiting[self.done.column("shard") - self.plan.first_shard] = False
        return [self.plan.first_shard + int(place) for place in np.flatnonzero(waiting)]

    @property
    def finished(self) -> bool:
        """True if every shard has a valid commit."""
        return len(self.done) == self.plan.shards

    @property
    def planned(self) -> int:
        """Number of planned inputs: exact for files and tables; for tars the inputs counted so far, without what was left out of them."""
        return self.inputs_seen - self.untaken.left_out_count if self.plan.tars_planned else self.plan.images_planned

    @property
    def planned_is_exact(self) -> bool:
        """False while uncommitted tars may hold inputs that are not counted yet."""
        return not self.plan.tars_planned or self.finished

    @property
    def images(self) -> int:
        """Number of committed inputs; each has one row per view."""
        return self.rows // self.plan.views.count

    @property
    def masks(self) -> MaskTotals | None:
        """Counts of the masks; None for a plan without masks."""
        if self.plan.mask is None:
            return None
        return MaskTotals(format=self.plan.mask_format).with_counts(self.masked_rows, self.mask_pixels.items())

    @property
    def balanced(self) -> bool:
        """True if every planned input has all its rows or a quarantine row, or is absent; all else that was seen is left out."""
        whole = self.images * self.plan.views.count == self.rows
        accounted = self.images + self.quarantined + self.untaken.absent
        return self.finished and whole and self.planned == accounted == self.inputs_seen - self.untaken.left_out_count


def survey_plan(store: Store, plan: Plan, spec: TokenizerSpec) -> Survey:
    """Read every commit of a plan and check that it names existing files of the right size."""
    survey = Survey(plan=plan)
    survey.done = ShardTable(_checked_entries(store, survey, spec))
    return survey


def _checked_entries(store: Store, survey: Survey, spec: TokenizerSpec) -> Iterator[ShardEntry]:
    """Yield the entry of each valid commit, ascending by shard; add counts and problems to the survey."""
    sizes = object_sizes(store, "shards", "quarantine")
    for outcome in _read_commits(store, survey):
        if isinstance(outcome, Problem):
            survey.problems.append(outcome)
            continue
        commit, digest = outcome
        references = [ref for ref in (commit.data, commit.quarantine) if ref is not None]
        wrong = [problem for ref in references if (problem := size_problem(ref, sizes)) is not None]
        if wrong:
            survey.problems.extend(wrong)
            survey.replaced.extend(references)
            continue
        _add(survey, commit, spec)
        yield _entry(commit, digest)


def is_commit(path: str) -> bool:
    """Return whether a path is that of a commit."""
    return _COMMIT_NAME.match(path) is not None


def size_problem(reference: ObjectRef, sizes: Mapping[str, int]) -> Problem | None:
    """Return the problem of an object according to the listing, None if the object exists with the right size."""
    seen = sizes.get(reference.path)
    if seen is None:
        return Problem(reference.path, "missing", f"its commit names it with {reference.size} bytes")
    if seen != reference.size:
        return Problem(reference.path, "wrong_size", f"it has {seen} bytes, expected {reference.size}")
    return None


def _read_commits(store: Store, survey: Survey) -> Iterator[tuple[Commit, str] | Problem]:
    plan = survey.plan
    listed = np.zeros(plan.shards, np.bool_)
    for info in store.list(f"commits/{plan.plan_id}"):
        if is_dropped(info.path):
            survey.dropped.append(info.path)
            survey.replaced.extend(read_dropped(store, info.path))
        match = _COMMIT_NAME.match(info.path)
        if match and int(match[1]) in plan.shard_numbers:
            listed[int(match[1]) - plan.first_shard] = True

    def read(place: int) -> tuple[Commit, str] | Problem:
        shard = plan.first_shard + place
        path = commit_path(plan.plan_id, shard)
        try:
            return read_commit(store, plan.plan_id, shard)
        except MissingObjectError:
            return Problem(path, "missing", "it disappeared after the listing")
        except CorruptObjectError as error:
            return Problem(path, "corrupt", error.detail)

    places = map(int, np.flatnonzero(listed))
    if store.is_local:
        yield from map(read, places)
        return
    yield from map_in_order(read, places, threads=READ_THREADS, ahead=READ_AHEAD)


def _entry(commit: Commit, digest: str) -> ShardEntry:
    data, quarantine = commit.data, commit.quarantine
    return ShardEntry(
        shard=commit.shard,
        path=data.path if data else None,
        sha256=data.sha256 if data else None,
        size=data.size if data else 0,
        rows=commit.rows,
        quarantine_path=quarantine.path if quarantine else None,
        quarantine_sha256=quarantine.sha256 if quarantine else None,
        quarantine_size=quarantine.size if quarantine else 0,
        quarantined=commit.quarantined,
        inputs_seen=commit.inputs_seen,
        plan_id=commit.plan_id,
        commit_sha256=digest,
        absent=commit.absent,
        left_out=commit.left_out_count,
    )


def _add(survey: Survey, commit: Commit, spec: TokenizerSpec) -> None:
    survey.rows += commit.rows
    survey.quarantined += commit.quarantined
    for reason, count in commit.reasons.items():
        survey.reasons[reason] = survey.reasons.get(reason, 0) + count
    survey.inputs_seen += commit.inputs_seen
    survey.untaken.add(commit.untaken)
    survey.image_remarks.update(commit.made_by.get("image_remarks", {}))
    survey.bytes_in += commit.bytes_in
    survey.bytes_shards += commit.data.size if commit.data else 0
    survey.token_bytes += commit.token_bytes
    survey.id_count += commit.id_count
    for stage, seconds in commit.seconds.items():
        survey.seconds[stage] = survey.seconds.get(stage, 0.0) + seconds
    merge_labels(survey.labels, commit.labels)
    survey.masked_rows += commit.masked_rows
    survey.mask_pixels.update({value: count for value, count in commit.mask_pixels})
    survey.histograms = _merged(survey.histograms, commit, spec)


def _merged(so_far: list[npt.NDArray[np.int64]] | None, commit: Commit, spec: TokenizerSpec) -> list[npt.NDArray[np.int64]] | None:
    if commit.rows == 0 or so_far is None:
        return so_far
    if not commit.histogram:
        return None
    counts = [unpack_counts(text, size) for text, size in zip(commit.histogram, spec.vocabulary, strict=True)]
    return [left + right for left, right in zip(so_far, counts, strict=True)] if so_far else counts


def manifest_histograms(manifest: Manifest) -> list[npt.NDArray[np.int64]] | None:
    """Return a manifest's id counts per level, None if the vocabulary was too large to count."""
    packed = manifest.statistics.get("histogram") or []
    return [unpack_counts(text, size) for text, size in zip(packed, manifest.spec.vocabulary, strict=True)] if packed else None
