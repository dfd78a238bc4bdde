"""Find the original inputs of committed rows again. The plan names the place of each input."""

from __future__ import annotations

from collections.abc import Iterator

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, Stage
from tokenshards.pipeline.job.inputs import read_inputs
from tokenshards.pipeline.planning.plan import Plan, read_shard_rows
from tokenshards.pipeline.records import AbsentRecord, FailedRecord, ImageRecord, LeftOutRecord, PlanRow
from tokenshards.pipeline.sources.fetch import urls_to_probe
from tokenshards.pipeline.storage.store import Store

__all__ = ["read_originals"]

LOST = (Reason.MISSING, Reason.NOT_A_FILE, Reason.CHANGED_SINCE_PLAN, Reason.BAD_CONTAINER, Reason.UNREADABLE)
"""Reasons for which a whole tar or table cannot be read."""


def read_originals(
    store: Store, plan: Plan, shard: int, source: Store, config: SourceConfig, wanted: frozenset[str]
) -> Iterator[ImageRecord | FailedRecord]:
    """Yield one record for each of the wanted sample ids of the shard: the bytes, or the reason why the bytes cannot be read.

    Files are read one by one. From tars and tables we read only the slices that may hold a wanted input, until all inputs are found.
    Raises TransientStorageError if the source fails.
    """
    planned = read_shard_rows(store, plan, shard)
    rows = [row for row in planned if _may_hold(row, config, wanted)]
    missing = set(wanted)
    lost = BadInput(Reason.MISSING, "the input is no longer in the place that the plan names", Stage.FETCH)
    for record in read_inputs(source, config, plan, rows, frozenset(), urls_to_probe(planned)):
        if isinstance(record, AbsentRecord | LeftOutRecord):
            continue
        if record.sample_id in missing:
            missing.remove(record.sample_id)
            yield record
            if not missing:
                return
        elif isinstance(record, FailedRecord) and record.error.reason in LOST:
            lost = record.error
    for sample_id in sorted(missing):
        yield FailedRecord(sample_id=sample_id, error=lost)


def _may_hold(row: PlanRow, config: SourceConfig, wanted: frozenset[str]) -> bool:
    if row.kind == "file":
        return row.sample_id in wanted
    if row.kind == "rows" and config.id_column is not None:
        return True
    name = row.sample_id if row.kind == "tar" else row.sample_id.rpartition("#")[0]
    inside = [sample_id[len(name) + 1 :] for sample_id in wanted if sample_id.startswith(f"{name}#")]
    if row.kind == "tar":
        return bool(inside)
    return any(number.isdigit() and row.row_start <= int(number) < row.row_stop for number in inside)
