"""Labels and meta values of tar samples: where they come from, and what a later tar may not contradict."""

from __future__ import annotations

import json
import posixpath
from functools import lru_cache
from typing import Any

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, SourceError, Stage, shorten
from tokenshards.pipeline.records import Label
from tokenshards.pipeline.sources.base import readable_text
from tokenshards.pipeline.sources.label_table import LabelTable
from tokenshards.pipeline.sources.labels.rule import LabelRule
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType, as_label, as_meta
from tokenshards.pipeline.sources.splits import asked_split, split_at
from tokenshards.pipeline.sources.tars.members import TarSample

__all__ = [
    "CAPTION",
    "LABEL_KEYS",
    "LABEL_SUFFIXES",
    "MAX_TEXT",
    "ListOfLabels",
    "json_of",
    "label_in_table",
    "label_place",
    "needed_suffixes",
    "planned_label",
    "planned_meta",
    "raw_label",
    "raw_meta",
    "tar_stem",
]

MAX_TEXT = 16 << 20
"""Most bytes of a text member."""
CAPTION = "caption"
LABEL_KEYS = ("label", "cls", "class", "class_id")
LABEL_SUFFIXES = ("target", "label", "class", "label.txt", "class.txt", "cls.txt", "target.txt")
"""Members that are taken as the label if a tar has nothing better and their values recur."""


class ListOfLabels(Exception):
    """A label is a list."""

    def __init__(self, place: str, value: object) -> None:
        super().__init__(f"({place}) is a list such as {shorten(value)}")


def needed_suffixes(config: SourceConfig) -> frozenset[str]:
    """Return the suffixes of the text members that labels and meta columns may come from."""
    named = {"json", *(config.meta), *([config.label] if config.label else [])}
    if config.label is None and config.label_from is None and not config.no_labels:
        named.add("cls")
    return frozenset(named | ({"txt"} if CAPTION in named else set()))


def json_of(sample: TarSample) -> dict[str, Any]:
    """Return the object of the .json member, {} if there is none; raises BadInput BAD_LABEL if the member is not JSON."""
    part = sample.parts.get("json")
    if part is None:
        return {}
    if part.error is not None:
        raise part.error
    if part.data is None:
        return {}
    try:
        value = json.loads(part.data)
    except (ValueError, RecursionError) as error:
        raise BadInput(Reason.BAD_LABEL, f"{part.member.name} is not JSON: {error}", Stage.FETCH) from None
    return value if isinstance(value, dict) else {}


def label_place(sample: TarSample, value: dict[str, Any], config: SourceConfig) -> str:
    """Return the place of a sample's label, such as `.cls` or `.json key label`; empty if it has none that is not of its path."""
    if config.no_labels or config.label_from is not None:
        return ""
    if config.label is not None:
        return _place(sample, value, config.label)
    if "cls" in sample.parts:
        return ".cls"
    for name in LABEL_KEYS:
        if value.get(name) is not None and not (isinstance(value[name], list) and name in config.meta):
            return f".json key {name}"
    return ""


def raw_label(sample: TarSample, value: dict[str, Any], config: SourceConfig, path: str) -> object:
    """Return the label before conversion, None if there is none. `path` is the place of the tar below the source.

    Raises BadInput BAD_LABEL for a member that is no text, and ListOfLabels unless `config.label_first`.
    """
    if config.label_from is not None:
        return _label_of_path(sample, config.label_from, path, config)
    place = label_place(sample, value, config)
    return _scalar(_at(sample, value, place), place, config)


def raw_meta(sample: TarSample, value: dict[str, Any], name: str) -> object:
    """Return a named value before conversion, None if there is none; raises BadInput BAD_LABEL for a member that is no text."""
    return _at(sample, value, _place(sample, value, name))


def planned_label(raw: object, label_type: LabelType | None, where: str, config: SourceConfig) -> Label:
    """Return a label as its planned type; raises SourceError if it has another one: the image is good, so it is not quarantined."""
    try:
        return as_label(raw, label_type)
    except BadInput as error:
        named = "--label NAME " if label_type is None else f"--label {config.label} " if config.label else ""
        raise SourceError(
            f"{where}: {error.detail}. The plan was made from a part of the tars. Nothing of this shard is written. Plan again, into "
            f"another output, with {named}--as-text, which stores labels as text, or with --no-labels"
        ) from None


def planned_meta(sample: TarSample, value: dict[str, Any], types: dict[str, MetaType], where: str) -> dict[str, Any]:
    """Return the meta values as their planned types; raises SourceError if the plan has another type."""
    found = {}
    for name, meta_type in types.items():
        raw = raw_meta(sample, value, name)
        try:
            found[name] = as_meta(name, raw, meta_type)
        except BadInput as error:
            raise SourceError(
                f"{where}: {error.detail}. The plan was made from a part of the tars. Nothing of this shard is written. Plan again, into "
                f"another output, with --as-text, which stores meta columns as text, or without --meta {name}"
            ) from None
    return found


@lru_cache(256)
def tar_stem(name: str) -> str:
    """Return the name of a tar without folders and extensions."""
    stem = posixpath.basename(name.rstrip("/"))
    for ending in (".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".tbz2", ".tbz", ".txz", ".tzst", ".zip"):
        stem = stem[: -len(ending)] if stem.lower().endswith(ending) else stem
    return stem


def label_in_table(table: LabelTable, sample: TarSample, path: str) -> Label:
    """Return the label that a table gives a sample, by the name of its image or by its key."""
    shown = next((sample.parts[suffix].member.name for suffix in sample.images), sample.key)
    return table.label_of(f"{readable_text(path)}/{readable_text(shown)}", readable_text(sample.key))


def _label_of_path(sample: TarSample, rule: str, path: str, config: SourceConfig) -> str | None:
    if rule == "none" or rule.startswith("file:"):
        return None
    if rule == "tar":
        return tar_stem(sample.inner or path)
    shown = next((sample.parts[suffix].member.name for suffix in sample.images), sample.key)
    place = -1 if config.split is None else split_at(posixpath.dirname(shown), asked_split(config.split))[1]
    return LabelRule.parse(rule).label_of(f"{path}/{shown}" if rule.startswith("regex:") else shown, place)


def _scalar(value: object, place: str, config: SourceConfig) -> object:
    if isinstance(value, list):
        if not config.label_first:
            raise ListOfLabels(place, value)
        value = value[0] if value else None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return int(value) if value.is_integer() else repr(value)
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return None if value == "" else value


def _place(sample: TarSample, value: dict[str, Any], name: str) -> str:
    """Return the place of a named value: a key of .json, else the member with that suffix; `caption` may also be the .txt."""
    if name in value:
        return f".json key {name}"
    return ".txt" if name == CAPTION and name not in sample.parts else f".{name}"


def _at(sample: TarSample, value: dict[str, Any], place: str) -> object:
    if not place:
        return None
    if place.startswith(".json key "):
        return value.get(place.removeprefix(".json key "))
    part = sample.parts.get(place[1:])
    if part is None:
        return None
    if part.error is not None:
        raise part.error
    if part.data is None:
        return None
    try:
        return part.data.decode().strip()
    except UnicodeDecodeError:
        detail = f"{part.member.name} is {shorten(part.data[:16])}; expected UTF-8 text"
        raise BadInput(Reason.BAD_LABEL, detail, Stage.FETCH) from None
