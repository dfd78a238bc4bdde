"""What the cells of a table mean as labels and meta values, by rules 3. Each kind of value has one rule; pipeline/README.md states them."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal

from tokenshards.pipeline.errors import BadInput, SourceError, shorten
from tokenshards.pipeline.records import Label
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType, as_meta, integer_in, valid_utf8
from tokenshards.pipeline.words import counted

__all__ = ["ListLabelError", "fitting_meta", "label_notes", "plain_label", "plain_meta", "whole_floats", "whole_number"]

_WHOLE_FLOAT = re.compile(r"-?[0-9]+\.0+")
_MISSING_WORDS = {"na", "n/a", "nan", "null", "none", "nil", "unknown", "-", "?"}


class ListLabelError(Exception):
    """A label is a list."""


def plain_label(value: object, *, first: bool = False) -> Label:
    """Return a cell as a label: whole numbers as int, everything else as text, None for an empty cell, empty text and NaN.

    `first` takes the first value of a list; without it a list raises ListLabelError.
    """
    if isinstance(value, str):
        return valid_utf8(value) or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, int):
        return value if value is None or integer_in(value) is not None else str(value)
    if isinstance(value, list):
        if not first:
            raise ListLabelError(shorten(value))
        return plain_label(value[0]) if value else None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return plain_label(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None
        return plain_label(int(value)) if value == value.to_integral_value() else str(value.normalize())
    plain = plain_meta(value)
    return plain if isinstance(plain, str) else None


def plain_meta(value: object) -> str | int | float | bool | None:
    """Return a cell as a meta value of a JSON type: dates and decimals as text, lists and structs as JSON text, bytes as hex digits."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_text)


def fitting_meta(name: str, value: object, meta_type: MetaType) -> tuple[str | int | float | bool | None, MetaType]:
    """Return a meta value and the type that holds it: the planned type if it fits, else the next wider one."""
    value = plain_meta(value)
    wider: tuple[MetaType, ...] = (meta_type, "float64", "string") if meta_type == "int64" else (meta_type, "string")
    for kind in wider:
        try:
            return as_meta(name, value, kind), kind
        except BadInput:
            continue
    raise SourceError(f"meta.{name} is {shorten(value)}; expected a number, a text or a bool")


def whole_floats(values: Iterable[object]) -> bool:
    """Return whether the texts of a column are whole numbers as pandas writes them where some are missing: `1.0`, `0.0`."""
    present = [value for value in values if isinstance(value, str) and value]
    floats = [value for value in present if _WHOLE_FLOAT.fullmatch(value)]
    return bool(floats) and all(integer_in(value) is not None for value in present if not _WHOLE_FLOAT.fullmatch(value))


def whole_number(text: str) -> int | None:
    """Return the number that a text of a column of whole numbers stands for, written as `1` or `1.0`; None if it is none."""
    number = integer_in(text)
    return int(text.partition(".")[0]) if number is None and _WHOLE_FLOAT.fullmatch(text) else number


def label_notes(classes: Counter[int | str], label_type: LabelType | None) -> list[str]:
    """Return a note for each kind of label that may be meant otherwise."""
    notes = []
    unknown = [label for label in classes if (label == -1 or label == "-1")]
    if unknown:
        notes.append(f"label -1 ({counted(classes[unknown[0]], 'input')}) often means `not known`; it is kept as a class")
    texts = [label for label in classes if isinstance(label, str)]
    words = [text for text in texts if text.strip().lower() in _MISSING_WORDS]
    if words:
        notes.append(
            f"the label {shorten(words[0])} ({counted(classes[words[0]], 'input')}) may mean that there is none; it is kept as a class"
        )
    spaced = [text for text in texts if text != text.strip()]
    if spaced:
        notes.append(
            f"{counted(len(spaced), 'class begins or ends', 'classes begin or end')} "
            f"with spaces, such as {shorten(spaced[0])}; kept as written"
        )
    if label_type == "string" and texts and all(integer_in(text) is not None for text in texts):
        notes.append("labels are text that consists of digits: they are kept as text")
    return notes


def _text(value: object) -> object:
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    plain = plain_meta(value) if isinstance(value, (datetime.date, datetime.time, datetime.timedelta, Decimal)) else None
    return str(value) if plain is None else plain
