"""The labels and meta values of all tables of a source, as planning reads them: one type in the end, which holds every value."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, SourceError, shorten
from tokenshards.pipeline.records import Label
from tokenshards.pipeline.sources.labels.cell_values import ListLabelError, fitting_meta, plain_label
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType, as_meta, integer_in
from tokenshards.pipeline.sources.summary import MAX_LABELS_COUNTED
from tokenshards.pipeline.sources.tables.rows import class_of
from tokenshards.pipeline.sources.tables.scan import Scan

__all__ = ["SeenLabels", "SeenMeta", "meta_type_of"]

_BASIC: tuple[MetaType, ...] = ("string", "int64", "float64", "bool")
_WHOLE_FLOAT = re.compile(r"(-?[0-9]+)\.0+")


class SeenLabels:
    """Labels by their cells. They are whole numbers until one is not; a plan keeps them as text, so those seen before stay right."""

    def __init__(self, config: SourceConfig) -> None:
        self._first = config.label_first
        self._as_text = config.as_text
        self.known: dict[str | int, Label] = {}
        """Labels of the texts and whole numbers that were seen as cells."""
        self.text = config.as_text
        """Whether labels are text."""
        self.widened = False
        """Whether labels were whole numbers before one was text."""
        self.digits = False
        """Whether text cells of digits are whole numbers, as in CSV."""
        self.floats = False
        """Whether text cells such as `1.0` are whole numbers."""
        self.kind: LabelType | None = None
        """The type that the first table gives the column, where no row has a label."""
        self.names: tuple[str, ...] | None = None
        """Names of the classes of a ClassLabel column; () where the tables do not agree."""
        self.disagree = False

    def new(self, cell: Any, where: str) -> Label:
        """Return the label of a cell that is not in `known`; raises SourceError if it cannot be a label."""
        try:
            label = plain_label(cell, first=self._first)
        except ListLabelError as error:
            raise SourceError(
                f"{where}: the label is a list ({error}), and an image has one label: --label-first takes the first, --no-labels leaves "
                "labels out"
            ) from None
        if self.names and isinstance(label, int):
            label = class_of(label, self.names)
        if isinstance(label, str):
            label = self._from_text(label, where)
        if label is not None and self.text:
            label = str(label)
        if cell.__class__ in (str, int) and len(self.known) < MAX_LABELS_COUNTED:
            self.known[cell] = label
        return label

    def _from_text(self, label: str, where: str) -> Label:
        if self.text or not (self.digits or self.floats):
            self._become_text()
            return label
        number = integer_in(label)
        if number is None and self.floats:
            whole = _WHOLE_FLOAT.fullmatch(label)
            if whole is None:
                raise SourceError(
                    f"{where}: the label is {shorten(label)}, but the labels before it are whole numbers such as 1.0; --as-text keeps all "
                    "labels as they are written"
                )
            number = int(whole[1])
        if number is None:
            self._become_text()
            return label
        return number

    def _become_text(self) -> None:
        if not self.text:
            self.text = True
            self.widened = bool(self.known)
            self.known.clear()

    def take_names(self, names: tuple[str, ...], *, rows: bool) -> None:
        """Take the class names of one table; where tables do not agree, the numbers are the labels. Tables without rows have no say."""
        if not rows:
            return
        if self.names is None:
            self.names = names
        elif self.names != names:
            self.names, self.disagree = (), True

    def take_scan(self, scan: Scan, kind: str) -> None:
        """Take the types of the labels of a table that was only looked at."""
        self.text = self.text or not scan.whole or kind == "string"

    def type(self) -> LabelType | None:
        """Return the type of all labels."""
        return "string" if self.text or self.names else self.kind

    def in_type(self, classes: Counter[int | str]) -> Counter[int | str]:
        """Return counted labels, some of which were counted as numbers before one was text, in the type of all."""
        if self.type() != "string":
            return classes
        found: Counter[int | str] = Counter()
        for label, count in classes.items():
            found[str(label)] += count
        return found


class SeenMeta:
    """Types of meta columns. A value that does not fit widens the type of its column: whole numbers to floats, anything to text."""

    def __init__(self, config: SourceConfig) -> None:
        self.types: dict[str, MetaType] = {}
        self.nulls: Counter[str] = Counter()
        self.widened: set[str] = set()
        self._as_text = config.as_text

    def take_types(self, kinds: dict[str, str]) -> None:
        """Take the kinds of the meta columns of one table."""
        for name, kind in kinds.items():
            if kind == "null":
                continue
            new = "string" if self._as_text else meta_type_of(kind)
            old = self.types.get(name)
            if old is not None and old != new:
                self.widened.add(name)
                new = "float64" if {old, new} == {"int64", "float64"} else "string"
            self.types[name] = new

    def finish(self, names: tuple[str, ...]) -> dict[str, MetaType]:
        """Return the types of all columns in their order; those without any value are text."""
        return {name: self.types.get(name, "string") for name in names}

    def values(self, cells: dict[str, Any]) -> dict[str, Any]:
        """Return the meta values of a row in the types so far."""
        found: dict[str, Any] = {}
        for name, value in cells.items():
            if value is None:
                self.nulls[name] += 1
                found[name] = None
                continue
            kind = self.types.setdefault(name, "string")
            try:
                found[name] = as_meta(name, value, kind)
            except (BadInput, TypeError):
                found[name], needed = fitting_meta(name, value, kind)
                if needed != kind:
                    self.types[name] = needed
                    self.widened.add(name)
        return found


def meta_type_of(kind: str) -> MetaType:
    """Return the meta type of a column kind: text for all but whole numbers, floats and bools."""
    return next((basic for basic in _BASIC if basic == kind), "string")
