"""What the listing of a source understood: the inputs, how they get id, label and meta, what is left out, and what is in doubt."""

from __future__ import annotations

import heapq
import posixpath
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tokenshards.pipeline.records import Label
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType
from tokenshards.pipeline.sources.splits import in_order
from tokenshards.pipeline.words import counted

__all__ = ["Doubt", "LeftOut", "SourceSummary", "extension"]

MAX_LABELS_COUNTED = 100_000
CLASSES_SHOWN, KINDS_SHOWN = 10, 8
LONGEST_SHOWN = 40
"""Longer names of classes, such as captions, are cut in the table."""
NO_LABELS = "no labels"
"""So begins the note that says why there are none."""
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Something about the input that may be meant otherwise."""

    sentence: str
    """What was seen, and how it is understood."""
    option: str
    """What to give to have it otherwise, or to settle it."""
    grave: bool = False
    """Whether the run stops until the option, or --yes, settles it."""

    def text(self) -> str:
        """Return sentence and option as one line."""
        return f"{self.sentence} [{self.option}]"


@dataclass(slots=True)
class LeftOut:
    """Files that one rule leaves out."""

    count: int = 0
    example: str = ""


@dataclass(slots=True)
class SourceSummary:
    """Counts and rules that the listing of the source fills."""

    noun: str = "image"
    """Word for one matched file."""
    files: int = 0
    bytes: int = 0
    rows: int = -1
    """Number of table rows; -1 if the inputs are files or are counted later."""
    images: int = -1
    """Number of images; -1 if it is the number of files, or of rows, or is counted later."""
    matched: Counter[str] = field(default_factory=Counter)
    """Matched files by extension."""
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    """Files that are no inputs, by the rule that leaves them out: their extension, or a name such as `hidden`."""
    beside: str = ""
    """A sentence about inputs of another kind that were left out."""
    tables_beside: list[str] = field(default_factory=list)
    """Tables beside images that may describe them: the first few."""
    archived: LeftOut = field(default_factory=lambda: LeftOut())
    """Inputs whose storage class says that they must be restored before they can be read."""
    examples: list[str] = field(default_factory=list)
    classes: Counter[int | str] = field(default_factory=Counter)
    """Inputs by label, up to 100,000 labels."""
    class_order: tuple[str, ...] = ()
    """Names of all classes in the order of their numbers, where the source gives it."""
    unlabelled: int = 0
    """Inputs without a label, as far as the listing saw their labels."""
    splits: Counter[str] = field(default_factory=Counter)
    """Inputs by split, as folders or file names say."""
    label_type: LabelType | None = None
    meta_types: dict[str, MetaType] = field(default_factory=dict)
    image_rule: str = ""
    """Which column of a table holds the images; as the rules below the end of a sentence."""
    id_rule: str = ""
    label_rule: str = ""
    meta_rule: str = ""
    mask_rule: str = ""
    """How ids, labels, meta columns and masks are made."""
    newer_inputs: bool = False
    """Whether a worker may find inputs absent, leave out files of a container, or read inputs in another way than format 1.0."""
    notes: list[str] = field(default_factory=list)
    """Further sentences for the user."""
    doubts: list[Doubt] = field(default_factory=list)
    opening: SourceSummary | None = field(default=None, repr=False)
    """What the opening of the source found, before any listing."""

    @property
    def labels(self) -> set[int | str]:
        """The distinct labels, up to 100,000."""
        return set(self.classes)

    def take(self, name: str, size: int, kind: str | None = None) -> None:
        """Count a matched file of `size` bytes; `kind` is its extension if the caller knows it."""
        self.files += 1
        if size > 0:
            self.bytes += size
        self.matched[kind or extension(name)] += 1
        if len(self.examples) < 3:
            self.examples.append(name)

    def restarted(self) -> SourceSummary:
        """Return a summary for a new listing, which holds what the opening of the source found, however often it is listed."""
        opening = self.opening or self
        return SourceSummary(
            noun=opening.noun,
            left_out={kind: replace(found) for kind, found in opening.left_out.items()},
            beside=opening.beside,
            splits=Counter(opening.splits),
            doubts=list(opening.doubts),
            archived=replace(opening.archived),
            opening=opening,
        )

    def take_label(self, label: Label, count: int = 1) -> None:
        """Count inputs with their label."""
        if label is None:
            self.unlabelled += count
        elif label in self.classes or len(self.classes) < MAX_LABELS_COUNTED:
            self.classes[label] += count

    def leave_out(self, kind: str, example: str, count: int = 1) -> None:
        """Count files that a rule leaves out, with the first as the example."""
        found = self.left_out.get(kind)
        if found is None:
            found = self.left_out[kind] = LeftOut(example=example)
        found.count += count

    def lines(self) -> list[str]:
        """Return the summary as lines of text: matched files, notes, ignored files, examples, doubts."""
        labels = f", {self._class_count()} labels" if self.classes else ""
        lines = [f"{self._inputs()}{labels}", *self.notes, *([self.beside] if self.beside else [])]
        if self.left_out:
            lines.append(f"ignored: {self._ignored()}")
        if self.examples:
            lines.append("for example " + ", ".join(self.examples))
        return [*lines, *(f"doubt {number}: {doubt.text()}" for number, doubt in enumerate(self.doubts, 1))]

    def table(self) -> list[tuple[str, str]]:
        """Return what was understood as (name, text): inputs, rules, classes, splits, what is left out, notes, numbered doubts."""
        rows = [("inputs", self._inputs())]
        if self.examples:
            rows.append(("for example", ", ".join(self.examples)))
        nothing = next((note for note in self.notes if note.startswith(NO_LABELS)), "")
        rules = (
            ("image", self.image_rule),
            ("id", self.id_rule),
            ("label", nothing or self.label_rule),
            ("metadata", self.meta_rule),
            ("masks", self.mask_rule),
        )
        rows += [(name, rule) for name, rule in rules if rule]
        if self.classes:
            shown = ", ".join(f"{_cut(label)} ({count:,})" for label, count in self._largest())
            more = ", …" if len(self.classes) > CLASSES_SHOWN else ""
            rows.append(("classes", f"{self._class_count()}: {shown}{more}; {self.unlabelled:,} without label"))
        if self.splits:
            rows.append(("splits", ", ".join(f"{split} ({self.splits[split]:,})" for split in in_order(self.splits))))
        if self.left_out:
            rows.append(("ignored", self._ignored()))
        rows += [("note", note) for note in (*self.notes, *([self.beside] if self.beside else [])) if note != nothing]
        return rows + [(f"doubt {number}", doubt.text()) for number, doubt in enumerate(self.doubts, 1)]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; of the classes the first ten by number of inputs."""
        plain = ("noun", "files", "bytes", "rows", "images", "beside", "examples", "tables_beside", "unlabelled", "notes")
        rules = ("image_rule", "id_rule", "label_rule", "meta_rule", "mask_rule", "label_type", "meta_types")
        return {
            **{name: getattr(self, name) for name in (*plain, *rules)},
            "matched": dict(self.matched),
            "left_out": {kind: {"count": found.count, "example": found.example} for kind, found in self.left_out.items()},
            "archived": self.archived.count,
            "class_count": len(self.classes),
            "classes": [[label, count] for label, count in self._largest()],
            "splits": dict(self.splits),
            "doubts": [asdict(doubt) for doubt in self.doubts],
        }

    def _largest(self) -> list[tuple[int | str, int]]:
        """Return the largest classes with their counts, those of one size by name."""
        return heapq.nsmallest(CLASSES_SHOWN, self.classes.items(), key=lambda item: (-item[1], str(item[0])))

    def _inputs(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.matched.most_common())
        rows = f", {counted(self.rows, 'row')}" if self.rows >= 0 else ""
        images = f", {counted(self.images, 'image')}" if self.images >= 0 else ""
        return f"{counted(self.files, self.noun)} ({kinds}), {self.bytes / 1e6:.1f} MB{rows}{images}"

    def _class_count(self) -> str:
        return f"{len(self.classes)}{'+' if len(self.classes) == MAX_LABELS_COUNTED else ''}"

    def _ignored(self) -> str:
        most = sorted(self.left_out.items(), key=lambda item: -item[1].count)
        rest = len(most) - KINDS_SHOWN
        more = f"; and {counted(rest, 'more kind')}" if rest > 0 else ""
        return ", ".join(f"{found.count:,} {kind} such as {found.example}" for kind, found in most[:KINDS_SHOWN]) + more


def _cut(label: int | str) -> str:
    text = str(label)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def extension(name: str) -> str:
    """Return the lower-case extension of a path with its dot; for a compressed file also the extension before it: `.csv.gz`."""
    name = name.lower()
    dot = name.rfind(".")
    if dot > 0 and name[dot - 1] not in "./" and "/" not in name[dot:] and name[dot:] not in _COMPRESSIONS:
        return name[dot:]  # for nearly every file the result of `splitext`, in half its time
    stem, last = posixpath.splitext(name)
    if last in _COMPRESSIONS:
        return posixpath.splitext(stem)[1] + last
    return last or "without extension"
