"""Labels and meta values of tar samples by rules 1 and 2, and what the first samples of a tar show about them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, SourceError, Stage, shorten
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType, infer_meta_type

__all__ = ["PeekedSamples", "TarSample", "json_of", "raw_label", "raw_meta"]

NAMES_SHOWN = 12
_LABEL_KEYS = ("label", "cls", "class", "class_id")


@dataclass(slots=True)
class TarSample:
    """Neighbouring members of a tar that share a key."""

    key: str
    offset: int
    """Byte offset of the first member's header in the uncompressed tar."""
    members: dict[str, bytes] = field(default_factory=dict)
    too_large: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class PeekedSamples:
    """Counts and values from the first samples."""

    meta: dict[str, list[object]]
    samples: int = 0
    labels: list[object] = field(default_factory=list)
    places: Counter[str] = field(default_factory=Counter)
    """Places of the labels, such as `.cls` or `.json key label`."""
    keys: set[str] = field(default_factory=set)
    """Keys of all .json members."""
    suffixes: Counter[str] = field(default_factory=Counter)
    texts: set[str] = field(default_factory=set)
    """Names of meta values from text members; their type is string, even if the first ones look like numbers."""
    unread: str = ""
    """Error of the last unreadable sample."""

    def add(self, sample: TarSample, config: SourceConfig) -> None:
        """Count a sample. An unreadable one is skipped here; the work will quarantine it."""
        try:
            value = json_of(sample)
            place = _label_place(sample, value, config)
            label = raw_label(sample, value, config)
            meta = {name: raw_meta(sample, value, name, config) for name in config.meta}
        except BadInput as error:
            self.unread = error.detail
            return
        self.samples += 1
        self.keys |= value.keys()
        self.suffixes.update(sample.members.keys())
        self.labels.append(label)
        if label is not None:
            self.places[place] += 1
        for name, one in meta.items():
            self.meta[name].append(one)
            if one is not None and name not in value:
                self.texts.add(name)

    def meta_types(self) -> dict[str, MetaType]:
        """Return the type of each meta column."""
        return {name: "string" if name in self.texts else infer_meta_type(values) for name, values in self.meta.items()}

    def absent(self, config: SourceConfig) -> list[str]:
        """Return the options that name a value that no sample has."""
        there = self.keys | self.suffixes.keys()
        named = [("--label", config.label), *(("--meta", name) for name in config.meta)]
        return [f"{option} {name}" for option, name in named if name is not None and name not in there]

    def refuse_absent(self, config: SourceConfig, where: str) -> None:
        """Raise SourceError if an option names a value that no sample has: its column would hold only nulls."""
        if self.unread and not self.samples and (config.label or config.meta):
            raise SourceError(f"{where}: none of the first samples can be read with --label and --meta: {self.unread}")
        absent = self.absent(config)
        if absent and self.samples:
            keys, suffixes = (", ".join(sorted(names)[:NAMES_SHOWN]) or "none" for names in (self.keys, self.suffixes))
            raise SourceError(
                f"{where}: none of the first {self.samples} samples has the value that {' and '.join(absent)} names; expected a key of "
                f"their .json members (they have {keys}) or the suffix of a text member (they have {suffixes})"
            )

    def understood(self, config: SourceConfig, label_type: LabelType | None) -> str:
        """Return one line that says where the labels come from, and whether captions stay unused."""
        captions = self.suffixes["txt"] if config.rules > 1 and "txt" not in (config.label, *config.meta) else 0
        unused = f"; the .txt of {captions} of {self.samples} samples is not used; --meta txt keeps it, --label txt makes it the class"
        if config.no_labels:
            said = "no labels, as --no-labels asks"
        elif label_type is None:
            said = f"no labels (no .cls and no label in .json in the first {self.samples} samples)"
        else:
            places = " or ".join(place for place, _ in self.places.most_common())
            said = f"labels: {places}, {'whole numbers' if label_type == 'int64' else 'text'}"
        return said + (unused if captions else "")


def json_of(sample: TarSample) -> dict[str, Any]:
    """Return the object of the .json member, {} if there is none; raises BadInput BAD_LABEL if the member is not JSON."""
    data = sample.members.get("json")
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(Reason.BAD_LABEL, f"{sample.key}.json is not JSON: {error}", Stage.FETCH) from None
    return value if isinstance(value, dict) else {}


def _label_place(sample: TarSample, value: dict[str, Any], config: SourceConfig) -> str:
    """Return the place of a sample's label, such as `.cls` or `.json key label`; empty if the sample has no label.

    The label is the value that --label names, else the .cls member, else a usual key of .json. By rule 1 of SOURCE_RULES it may also be the
    .txt member.
    """
    if config.no_labels:
        return ""
    if config.label is not None:
        return _place(sample, value, config.label, config)
    if "cls" in sample.members:
        return ".cls"
    usual = next((name for name in _LABEL_KEYS if value.get(name) is not None), None)
    if usual is not None:
        return f".json key {usual}"
    return ".txt" if config.rules == 1 and "txt" in sample.members else ""


def _place(sample: TarSample, value: dict[str, Any], name: str, config: SourceConfig) -> str:
    """Return the place of a named value: a key of .json, else a member with that suffix. Rule 1 of SOURCE_RULES knows only keys."""
    return f".{name}" if config.rules > 1 and name not in value and name in sample.members else f".json key {name}"


def raw_label(sample: TarSample, value: dict[str, Any], config: SourceConfig) -> object:
    """Return the label before conversion, None if there is none; raises BadInput BAD_LABEL for a member that is not text."""
    return _at(sample, value, _label_place(sample, value, config))


def raw_meta(sample: TarSample, value: dict[str, Any], name: str, config: SourceConfig) -> object:
    """Return a named value before conversion, None if there is none; raises BadInput BAD_LABEL for a member that is not text."""
    return _at(sample, value, _place(sample, value, name, config))


def _at(sample: TarSample, value: dict[str, Any], place: str) -> object:
    if place.startswith(".json key "):
        return value.get(place.removeprefix(".json key "))
    return _text(sample, place[1:]) if place else None


def _text(sample: TarSample, suffix: str) -> str:
    try:
        return sample.members[suffix].decode().strip()
    except UnicodeDecodeError:
        detail = f"{sample.key}.{suffix} is {shorten(sample.members[suffix][:16])}; expected UTF-8 text"
        raise BadInput(Reason.BAD_LABEL, detail, Stage.FETCH) from None
