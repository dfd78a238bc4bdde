"""Tables of text whose cells hold the images themselves, in base64 or as data: URIs: they are planned in slices, like tables of bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.base import readable_text
from tokenshards.pipeline.sources.splits import known_split, split_of_file
from tokenshards.pipeline.sources.tables.columns import Columns
from tokenshards.pipeline.sources.tables.files import id_text
from tokenshards.pipeline.sources.tables.rows import OFFSET, OTHER_SPLIT, is_of_split, wanted_split
from tokenshards.pipeline.sources.tables.scan import hash64
from tokenshards.pipeline.sources.tables.seen import Seen
from tokenshards.pipeline.sources.tables.text import TextTable

__all__ = ["encoded_slices"]

SLICE_ROWS = 1000


def encoded_slices(
    table: TextTable, columns: Columns, partition: dict[str, str | None], where: str, seen: Seen, ids: list[npt.NDArray[np.uint64]]
) -> Iterator[PlanRow]:
    """Yield slices of at most 1,000 rows with the byte at which each begins; takes labels, meta types and ids on the way."""
    info, summary, name = table.info, seen.summary, readable_text(table.info.path)
    summary.newer_inputs = True
    names = tuple(column for column in columns.names if column not in partition)
    pick, wanted = table.picker(names), wanted_split(seen.config, info.path)
    by_name = split_of_file(name) is not None
    hashes: list[int] = []
    if not table.seekable:
        summary.notes.append(
            f"{name} is read from its start for each 1,000 rows; plain UTF-8 of rows in lines is read from where they begin"
        )

    def planned(stop: int) -> PlanRow:
        return PlanRow(
            kind="rows",
            sample_id=f"{name}#0:{start}-{stop}",
            path=info.path,
            size=info.size,
            version=info.version,
            inputs=inputs,
            meta={OFFSET: offset} if start and table.seekable else {},
            row_group=0,
            row_start=start,
            row_stop=stop,
        )

    start, inputs, offset, before, number = 0, 0, 0, 0, -1
    for number, raw in enumerate(table.rows(placed=table.seekable)):
        if number == start + SLICE_ROWS:
            if inputs:
                yield planned(number)
            start, inputs, offset = number, 0, before
        before = table.position
        cells = {**dict(zip(names, pick(raw), strict=True)), **partition}
        cell = None if columns.label is None else cells[columns.label]
        label = None if cell is None else seen.labels.new(cell, f"{where}: row {number}")  # the labels of all splits are of one type
        if columns.split is not None and not by_name:
            split = known_split(str(cells[columns.split]).strip())
            if split is not None:
                summary.splits[split] += 1
            if wanted is not None and not is_of_split(cells[columns.split], wanted):
                seen.leave_split(split or str(cells[columns.split] or "").strip().casefold())
                summary.leave_out(OTHER_SPLIT, f"{name}#{number}")
                continue
        inputs += 1
        summary.rows += 1
        if columns.id is not None:
            hashes.append(hash64(id_text(cells[columns.id], columns.id, number, where)))
        if columns.label is not None:
            summary.take_label(label)
        if columns.meta:
            seen.meta.values({column: (cells[column] or None) if not table.is_json else cells[column] for column in columns.meta})
    if inputs:
        yield planned(number + 1)
    if columns.id is not None:
        ids.append(np.array(hashes, np.uint64))
