"""Read the inputs of one planned row, of whatever kind of source."""

from __future__ import annotations

from collections.abc import Iterator

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.records import AbsentRecord, PlanRow, SourceRecord
from tokenshards.pipeline.sources.base import read_file_row
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType
from tokenshards.pipeline.sources.tables.earlier_rules import read_rows_before
from tokenshards.pipeline.sources.tables.rows import read_table_rows
from tokenshards.pipeline.sources.tars.source import read_tar
from tokenshards.pipeline.storage.store import Store

__all__ = ["read_slice"]


def read_slice(
    store: Store, row: PlanRow, config: SourceConfig, label_type: LabelType | None, meta_types: dict[str, MetaType]
) -> Iterator[SourceRecord]:
    """Yield a record for each input of a planned row of any kind, and for what it leaves out. Workers call it; nothing is listed again.

    `store` is the source's root; the types come from the source's summary. Raises only TransientStorageError.
    """
    if row.kind == "tar":
        return read_tar(store, row, config, label_type, meta_types)
    if row.kind == "rows":
        read_rows = read_rows_before if config.rules < 3 else read_table_rows
        return read_rows(store, row, config, label_type, meta_types)
    if row.kind == "absent":
        return iter((AbsentRecord(sample_id=row.sample_id, uri=row.path),))
    return iter((read_file_row(store, row, config),))
