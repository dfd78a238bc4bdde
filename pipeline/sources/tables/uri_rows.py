"""The rows of a table of URIs, one by one: the loop that decides how fast a large table is planned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tokenshards.pipeline.errors import SourceError, shorten
from tokenshards.pipeline.records import Label, PlanRow
from tokenshards.pipeline.sources.base import readable_text
from tokenshards.pipeline.sources.hosts.uris import is_outside, names_local_file
from tokenshards.pipeline.sources.labels.values import valid_utf8
from tokenshards.pipeline.sources.splits import known_split, split_of_file
from tokenshards.pipeline.sources.tables.columns import Columns
from tokenshards.pipeline.sources.tables.files import id_text
from tokenshards.pipeline.sources.tables.paths import Places, filled
from tokenshards.pipeline.sources.tables.rows import FAILED_STATUS, OTHER_SPLIT, wanted_split
from tokenshards.pipeline.sources.tables.seen import Seen

__all__ = ["uri_rows"]

PROBED_PATHS = 8
_UNKNOWN: Any = object()
Pick = Callable[[Any], tuple[Any, ...]]


def uri_rows(path: str, columns: Columns, rows: Iterable[Any], pick: Pick, seen: Seen, where: str, *, csv: bool) -> Iterator[PlanRow]:
    """Yield a row for each image that a table names; `pick` takes the cells of `columns.names` from a row. An empty cell of CSV is null."""
    store, config, summary, labels = seen.store, seen.config, seen.summary, seen.labels
    places, name = Places(store, path, config), readable_text(path)
    where_is = {column: place for place, column in enumerate(columns.names)}
    label_at = -1 if columns.label is None else where_is[columns.label]
    id_at = -1 if columns.id is None else where_is[columns.id]
    status_at = -1 if columns.status is None else where_is[columns.status]
    split_at = -1 if columns.split is None or split_of_file(name) is not None else where_is[columns.split]
    mask_at = -1 if columns.mask is None else where_is[columns.mask]
    metas = [(column, where_is[column]) for column in columns.meta]
    template = columns.template
    parts = [where_is[column] for _, column in template if column is not None]
    image_at = -1 if columns.image is None else where_is[columns.image]
    wanted = wanted_split(config, path)
    known, resolve, take_label = labels.known, places.resolve, summary.take_label
    for number, raw in enumerate(rows):
        cells = pick(raw)
        label: Label = None  # of a row of another split too: the labels of all splits are of one type
        if label_at >= 0:
            cell = cells[label_at]
            kind = cell.__class__
            if kind is str or kind is int:  # as keys of `known`, other types would equal an int
                label = known.get(cell, _UNKNOWN)
                if label is _UNKNOWN:
                    label = labels.new(cell, f"{where}: row {number}")
            elif cell is not None:
                label = labels.new(cell, f"{where}: row {number}")
        if split_at >= 0:
            text = "" if cells[split_at] is None else str(cells[split_at]).strip()
            split = known_split(text)
            if split is not None:
                summary.splits[split] += 1
            if wanted is not None and (split or text.casefold()) != wanted:
                seen.leave_split(split or text.casefold())
                summary.leave_out(OTHER_SPLIT, f"{name}#{number}")
                continue
        sample_id = f"{name}#{number}" if id_at < 0 else id_text(cells[id_at], str(columns.id), number, where)
        summary.rows += 1
        uri = filled(template, [cells[place] for place in parts]) if image_at < 0 else cells[image_at]
        if not uri or (status_at >= 0 and str(cells[status_at]).startswith(FAILED_STATUS)):
            summary.newer_inputs = True
            seen.absent += 1
            yield PlanRow(kind="absent", sample_id=sample_id, path="", size=-1, version="", inputs=1)
            continue
        if uri.__class__ is not str:
            raise SourceError(f"{where}: row {number}: {columns.image} is {shorten(uri)}; expected text with a path or URL")
        if uri.startswith("data:"):
            raise SourceError(
                f"{where}: row {number}: {columns.image} holds the image itself ({shorten(uri)}), and the rows before hold paths or URLs; "
                "expected one of the two in a table"
            )
        take_label(label)
        meta = seen.meta.values({column: cells[at] or None if csv else cells[at] for column, at in metas}) if metas else {}
        place = resolve(uri if uri.isascii() else valid_utf8(uri))
        if names_local_file(place) and not places.within_root(place):
            seen.outside += not store.is_local or is_outside(store, place, links=False)
        elif number < PROBED_PATHS and "://" not in place:
            seen.probed.append(place)
        seen.masked += mask_at >= 0 and bool(cells[mask_at])
        mask = None if mask_at < 0 else _mask_place(cells[mask_at], places, f"{where}: row {number}", str(columns.mask))
        yield PlanRow(kind="file", sample_id=sample_id, path=place, size=-1, version="", inputs=1, label=label, meta=meta, mask_path=mask)
    seen.backslashes += places.backslashes


def _mask_place(cell: Any, places: Places, where: str, column: str) -> str | None:
    """Return the place of a mask that a cell names, None for an empty cell. Raises SourceError for anything but a path or URL."""
    if not cell:
        return None
    if not isinstance(cell, str) or cell.startswith("data:"):
        raise SourceError(f"{where}: {column} is {shorten(cell)}; expected a path or a URL of a mask, as in the column of images")
    return places.resolve(cell if cell.isascii() else valid_utf8(cell))
