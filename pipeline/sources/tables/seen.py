"""What the listing of tables has seen so far, and what it says in the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import Reason, SourceError
from tokenshards.pipeline.sources.doubts import null_column
from tokenshards.pipeline.sources.labels.cell_values import label_notes
from tokenshards.pipeline.sources.labels.values import LabelType
from tokenshards.pipeline.sources.splits import in_order
from tokenshards.pipeline.sources.summary import Doubt, SourceSummary
from tokenshards.pipeline.sources.tables.columns import LABEL_NAMES, Columns
from tokenshards.pipeline.sources.tables.hints import where_images_are
from tokenshards.pipeline.sources.tables.labels import SeenLabels, SeenMeta
from tokenshards.pipeline.sources.tables.rows import class_of
from tokenshards.pipeline.sources.tables.scan import Scan
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["Seen"]

COLUMNS_SHOWN, SPLITS_SHOWN = 12, 8
_KINDS: dict[LabelType | None, str] = {"int64": "whole numbers", "string": "text", None: "all of them null"}
_OTHER_KINDS = {
    "float64": "floats: those that are whole numbers are taken as such, others as text, NaN as no label",
    "decimal": "decimals: those that are whole numbers are taken as such, others as text",
    "bool": "bools: the classes are the texts false and true",
    "time": "times: the classes are their texts",
}


@dataclass(slots=True, kw_only=True)
class Seen:
    """Counts over all tables of a source."""

    store: Store
    config: SourceConfig
    summary: SourceSummary
    labels: SeenLabels
    meta: SeenMeta
    first: Columns | None = None
    label_kind: str = ""
    """Kind of the label column, as the first table that has one says."""
    scanned: Counter[int | str] = field(default_factory=Counter)
    """Labels of tables whose rows were not listed one by one."""
    others: int = 0
    absent: int = 0
    outside: int = 0
    """Rows that name local files outside the folder of their table."""
    backslashes: int = 0
    probed: list[str] = field(default_factory=list)
    """The first places below the source."""
    other_split: int = 0
    """Rows of other splits than the asked one."""
    split_names: set[str] = field(default_factory=set)
    """Some of their splits."""
    paths: list[npt.NDArray[np.int64]] | None = field(default_factory=list)
    """Hashes of the file names of all tables with bytes; None once a row has none."""
    masked: int = 0
    """Rows that name a mask; those with the bytes of one are not counted."""
    some_paths: bool = False
    """Whether a row of bytes has a file name."""
    no_path: str = ""
    """The first row or table of bytes without file names."""

    def take_scan(self, scan: Scan, kind: str) -> None:
        """Take what was seen of a table of bytes."""
        self.labels.take_scan(scan, kind)
        self.scanned.update(scan.labels)
        self.others += scan.others
        self.meta.nulls.update(scan.null_meta)
        self.summary.unlabelled += scan.no_label

    def leave_split(self, name: str) -> None:
        """Count a row of another split."""
        self.other_split += 1
        if name and len(self.split_names) < SPLITS_SHOWN:
            self.split_names.add(name)

    def take_paths(self, paths: npt.NDArray[np.int64] | int | None, name: str) -> None:
        """Take the file names of a table of bytes, as `paths_are_there` returns them."""
        self.some_paths |= isinstance(paths, int) or (paths is not None and len(paths) > 0)
        if self.paths is not None and paths is not None and not isinstance(paths, int):
            self.paths.append(paths)
        elif paths is None or isinstance(paths, int):
            self.paths = None
            self.no_path = self.no_path or (name if paths is None else f"row {paths} of {name}")

    def paths_are_ids(self) -> bool:
        """Return whether all images have file names, and no two the same."""
        if not self.paths or self.config.id_column is not None:
            return False
        hashes = np.sort(np.concatenate(self.paths))
        return len(hashes) > 0 and not bool((hashes[1:] == hashes[:-1]).any())

    def finish(self) -> None:
        """Say what all tables together show. Raises SourceError if the options leave nothing."""
        summary, first = self.summary, self.first
        self._finish_labels()
        if first is None:
            raise SourceError(f"{self._where}: the tables are empty; expected rows with images, or a column of their paths")
        summary.meta_types = self.meta.finish(first.meta)
        summary.newer_inputs |= bool(self.meta.widened)
        summary.image_rule = first.image_words
        summary.meta_rule = ", ".join(f"column {name} ({kind})" for name, kind in summary.meta_types.items()) or "none"
        if first.others:
            more = ", …" if len(first.others) > COLUMNS_SHOWN else ""
            summary.meta_rule += f"; not taken: {', '.join(first.others[:COLUMNS_SHOWN])}{more} [--meta NAME]"
        for name in sorted(self.meta.widened):
            summary.notes.append(f"values of column {name} are of several types: they are kept as {summary.meta_types[name]}")
        summary.notes += first.notes
        self._finish_rows(first)
        self._finish_masks(first)
        rows = max(0, summary.rows)
        if first.label is not None:
            self._doubt(null_column(first.label, summary.unlabelled, rows, f"--label NAME, or --meta {first.label}"))
        for name, nulls in self.meta.nulls.items():
            self._doubt(null_column(name, nulls, rows, f"leave --meta {name} out if it says nothing"))
        if self.other_split and not rows:
            found = ", ".join(in_order({*summary.splits, *self.split_names})[:SPLITS_SHOWN]) or "none"
            raise SourceError(
                f"{self._where}: no row is of the split {self.config.split!r}, as column {first.split} says; the splits there are {found}. "
                "Give one of them, or leave --split out"
            )
        if self.some_paths and not self.paths_are_ids() and rows:
            why = f"{self.no_path} has none" if self.no_path else "two rows have the same"
            summary.notes.append(f"ids are numbers of rows, not the file names in {first.image}.path, because {why}")

    @property
    def _where(self) -> str:
        """The only table, or the folder of several."""
        only = self.summary.files == 1 and self.summary.examples
        return self.store.place(self.summary.examples[0]) if only else self.store.url

    def _finish_labels(self) -> None:
        summary, labels, first = self.summary, self.labels, self.first
        for label, count in self.scanned.items():
            name = class_of(label, labels.names) if labels.names and isinstance(label, int) else label
            summary.take_label(name, count)
        summary.classes = labels.in_type(summary.classes)
        if labels.disagree and labels.type() == "string":
            raise SourceError(
                f"{self.store.url}: the class names of the label column are not the same in all tables, so neither names nor texts can be "
                "its labels. Tokenize the tables separately, or without --as-text"
            )
        summary.label_type = None if first is None or first.label is None else labels.type()
        if labels.names:
            summary.class_order = labels.names
        if self.config.no_labels or self.config.label_from == "none":
            summary.notes.append("no labels, as --no-labels asks" if self.config.no_labels else "no labels, as --label-from none asks")
            summary.label_rule = "none"
        elif first is None or first.label is None:
            summary.notes.append(f"no labels (no integer or text column named {', '.join(LABEL_NAMES)}; name one with --label)")
            summary.label_rule = "none"
        else:
            kind = f"the class names of its schema ({len(labels.names)})" if labels.names else _KINDS[summary.label_type]
            summary.label_rule = f"column {first.label}, {kind}"
            if labels.widened:
                summary.notes.append(f"column {first.label} holds whole numbers and texts: all labels are text")
            if labels.disagree:
                summary.notes.append(f"the class names of column {first.label} are not the same in all tables: its numbers are the labels")
            if self.label_kind in _OTHER_KINDS:
                summary.notes.append(f"column {first.label} holds {_OTHER_KINDS[self.label_kind]}")
            summary.notes += label_notes(summary.classes, summary.label_type)

    def _finish_rows(self, first: Columns) -> None:
        summary, config = self.summary, self.config
        summary.id_rule = "the path of the table and the number of the row"
        if first.id is not None:
            summary.id_rule = f"column {first.id}"
        elif self.paths_are_ids():
            summary.id_rule = f"the file names in {first.image}.path, each of which occurs once"
        if self.absent:
            summary.notes.append(f"{counted(self.absent, 'row has', 'rows have')} no image, as the table says: counted as absent")
        if self.outside:
            summary.notes.append(self._outside_note())
        if self.backslashes:
            summary.notes.append(f"backslashes in {counted(self.backslashes, 'path')} are taken as separators of folders")
        if self.probed:
            self._doubt(where_images_are(self.store, self.probed, config))

    def _finish_masks(self, first: Columns) -> None:
        summary = self.summary
        if first.mask is None:
            return
        summary.mask_rule = f"column {first.mask}"
        if first.holds != "URIs":
            return
        summary.mask_rule += f", {self.masked:,} of {counted(summary.rows, 'row has', 'rows have')} one"
        if not self.masked and not self.config.frozen:
            raise SourceError(
                f"{self._where}: no row has a mask in column {first.mask}; expected the path or URL of a mask. Leave --mask-column out"
            )

    def _doubt(self, doubt: Doubt | None) -> None:
        if doubt is not None:
            self.summary.doubts.append(doubt)

    def _outside_note(self) -> str:
        rows = counted(self.outside, "row names", "rows name")
        if self.store.is_local:
            return f"{rows} files outside {self.store.root}: if one fails, the quarantine does not keep its bytes"
        return f"{rows} local files, which a table in a store may not do: they will be quarantined as {Reason.BAD_URI}"
