"""The cells of tables by column, and as tuples of the chosen columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from tokenshards.pipeline.sources.tables.binary import ColumnTable
from tokenshards.pipeline.sources.tables.columns import Columns
from tokenshards.pipeline.sources.tables.text import TextTable

__all__ = ["cell_tuples", "cells_by_column", "first_cells", "peeked"]

BATCH_ROWS = 4096
PEEKED_ROWS = 4096
PEEKED_CHARACTERS = 1 << 25


def peeked(rows: Iterator[Any]) -> list[Any]:
    """Return the first rows of a table of text: at most 4,096, and fewer where cells are long, as with images in base64."""
    head: list[Any] = []
    size = 0
    for row in islice(rows, PEEKED_ROWS):
        head.append(row)
        size += sum(len(cell) for cell in (row.values() if isinstance(row, dict) else row) if isinstance(cell, str))
        if size > PEEKED_CHARACTERS:
            break
    return head


def first_cells(table: ColumnTable, column: str) -> list[Any]:
    """Return the first cells of a column, at most 64."""
    batch = next(table.all_batches([column], 64), None) if column in table.schema.names else None
    return [] if batch is None else batch.column(0).to_pylist()


def cell_tuples(table: ColumnTable, columns: Columns, constant: dict[str, str | None]) -> Iterator[tuple[Any, ...]]:
    """Yield the cells of `columns.names` of every row."""
    names = [name for name in columns.names if name in table.schema.names]
    for batch in table.all_batches(names, BATCH_ROWS):
        cells = {name: batch.column(batch.schema.get_field_index(name)).to_pylist() for name in names}
        yield from zip(*(cells[name] if name in cells else [constant[name]] * batch.num_rows for name in columns.names), strict=True)


def cells_by_column(table: TextTable, head: list[Any]) -> dict[str, list[Any]]:
    """Return the cells of the first rows by column."""
    if table.is_json:
        return {name: [row.get(name) for row in head] for name in dict.fromkeys(chain.from_iterable(head))}
    if not table.names:
        return {}
    columns = zip(*head, strict=True) if head else [()] * len(table.names)
    return {name: list(cells) for name, cells in zip(table.names, columns, strict=True)}
