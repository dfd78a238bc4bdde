"""What values mean as labels and meta columns: their types, inferred from a few and applied to all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from tokenshards.pipeline.errors import BadInput, Reason, Stage, shorten
from tokenshards.pipeline.records import Label

__all__ = ["LabelType", "MetaType", "as_label", "as_meta", "infer_label_type", "infer_meta_type", "integer_in", "valid_utf8"]

LabelType = Literal["int64", "string"]


MetaType = Literal["string", "int64", "float64", "bool"]

_NARROW_META_TYPES: tuple[MetaType, ...] = ("bool", "int64", "float64")
_INT64 = range(-(1 << 63), 1 << 63)


def integer_in(value: object) -> int | None:
    """Return `value` as int64 if it is one, or if its text is one without padding (`7`, not `007`); else None."""
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.removeprefix("-").isdigit() and str(int(value)) == value:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value in _INT64 else None


def as_label(value: object, label_type: LabelType | None) -> Label:
    """Return a label converted to the planned type; None stays None. Raises BadInput BAD_LABEL if the label does not fit."""
    if value is None:
        return None
    if label_type == "int64":
        number = integer_in(value)
        if number is not None:
            return number
    elif label_type == "string" and isinstance(value, (str, int)):
        return valid_utf8(str(value))
    expected = "no label, as in the inputs seen at planning" if label_type is None else f"{label_type}, as planned"
    raise BadInput(Reason.BAD_LABEL, f"the label is {shorten(value)}; expected {expected}", Stage.FETCH)


def as_meta(name: str, value: object, meta_type: MetaType) -> str | int | float | bool | None:
    """Return a meta value converted to its planned type; None stays None. Raises BadInput BAD_LABEL if the value does not fit."""
    if value is None:
        return None
    if meta_type == "string":
        return valid_utf8(value) if isinstance(value, str) else json.dumps(value)
    text = value.strip().lower() if isinstance(value, str) else ""
    if meta_type == "bool" and (isinstance(value, bool) or text in ("true", "false")):
        return value if isinstance(value, bool) else text == "true"
    if meta_type == "int64" and (number := integer_in(value)) is not None:
        return number
    if meta_type == "float64" and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass  # the last line raises the error
    raise BadInput(Reason.BAD_LABEL, f"meta.{name} is {shorten(value)}; expected {meta_type}, as planned", Stage.FETCH)


def infer_label_type(values: Iterable[object]) -> LabelType | None:
    """Return int64 if every value is an integer or the text of one, else string. None values are ignored; without a value return None."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    return "int64" if all(integer_in(value) is not None for value in present) else "string"


def infer_meta_type(values: Iterable[object]) -> MetaType:
    """Return the narrowest of bool, int64, float64 and string that holds every value; string if there is no value."""
    present = [value for value in values if value is not None]
    for meta_type in _NARROW_META_TYPES if present else ():
        try:
            for value in present:
                as_meta("", value, meta_type)
        except BadInput:
            continue
        return meta_type
    return "string"


def valid_utf8(text: str) -> str:
    """Return `text` as valid UTF-8; lone surrogates, which JSON allows, become escapes such as `\\ud800`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
