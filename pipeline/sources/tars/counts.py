"""What the members of a tar show about its rules: how keys end, and which values could be labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenshards.pipeline.errors import BadInput
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType, as_meta, integer_in
from tokenshards.pipeline.sources.tars.members import TarSample

__all__ = ["KeyCounts", "MetaKind", "Values"]

MOST_DISTINCT = 100_000
MOST_SUFFIXES = 10_000
FEWEST_OF_A_CLASS_TABLE, LONGEST_CLASS = 8, 64
_KINDS: tuple[MetaType, ...] = ("bool", "int64", "float64")


@dataclass(slots=True)
class Values:
    """Values of one place, such as the .txt members."""

    count: int = 0
    missing: int = 0
    whole: bool = True
    """Whether all are whole numbers."""
    longest: int = 0
    distinct: Counter[int | str] = field(default_factory=Counter)

    def add(self, value: object) -> None:
        """Count a value; None is missing."""
        if value is None:
            self.missing += 1
            return
        kept = value if isinstance(value, (int, str)) else str(value)
        self.count += 1
        self.whole = self.whole and integer_in(kept) is not None
        if kept in self.distinct or len(self.distinct) < MOST_DISTINCT:
            self.distinct[kept] += 1
            self.longest = max(self.longest, len(str(kept)))

    def add_all(self, values: Iterable[object]) -> None:
        """Count values."""
        for value in values:
            self.add(value)

    def label_type(self) -> LabelType | None:
        """Return the type of labels that holds every value."""
        return None if not self.count else "int64" if self.whole else "string"

    def are_classes(self) -> bool:
        """Return whether these are plainly classes: short, and each of them again and again."""
        few = FEWEST_OF_A_CLASS_TABLE <= self.count and 4 * len(self.distinct) <= self.count
        return few and self.longest <= LONGEST_CLASS and not any("\n" in str(value) for value in self.distinct)

    def shown(self, most: int = 3) -> str:
        """Return the first values as text."""
        names = [str(value) for value, _ in self.distinct.most_common(most)]
        return ", ".join(names) + (", …" if len(self.distinct) > most else "")


@dataclass(slots=True)
class MetaKind:
    """The narrowest type of the values of a meta column."""

    text_member: bool = False
    """Whether some come from a text member; then all are text, even if these look like numbers."""
    seen: bool = False
    fits: list[MetaType] = field(default_factory=lambda: list(_KINDS))

    def add(self, value: object) -> None:
        """Narrow the type by a value."""
        if value is None:
            return
        self.seen = True
        for kind in list(self.fits):
            try:
                as_meta("", value, kind)
            except BadInput:
                self.fits.remove(kind)

    def type(self) -> MetaType:
        """Return the type."""
        return self.fits[0] if self.seen and self.fits and not self.text_member else "string"


@dataclass(slots=True)
class KeyCounts:
    """What is lost if keys end at the first dot of a name, and what if they end at the last; counted over runs of the first."""

    runs: int = 0
    dotted: int = 0
    numbered: int = 0
    """Dotted suffixes whose first part is a number, as in `cat.0.jpg`."""
    suffixes: Counter[str] = field(default_factory=Counter)
    lost_by_first: int = 0
    lost_by_last: int = 0
    orphans_by_last: int = 0
    """Texts that would lose their image."""
    example: str = ""

    def add(self, sample: TarSample) -> None:
        """Count the members of one key."""
        self.runs += 1
        self.lost_by_first += max(0, len(sample.images) - 1)
        names = [suffix.rpartition(".")[0] for suffix in sample.parts]
        if not any(names):
            self.lost_by_last += max(0, len(sample.images) - 1)
            return
        images = Counter(suffix.rpartition(".")[0] for suffix in sample.images)
        self.lost_by_last += sum(count - 1 for count in images.values())
        if images:
            self.orphans_by_last += sum(name not in images for name in names)
        changes = sum(one != other for one, other in zip(names, names[1:], strict=False))
        self.orphans_by_last += changes + 1 - len(set(names))  # a name that comes again after another one
        for suffix, name in zip(sample.parts, names, strict=True):
            if name:
                self.dotted += 1
                self.numbered += name.replace(".", "").isdigit()
                if suffix in self.suffixes or len(self.suffixes) < MOST_SUFFIXES:
                    self.suffixes[suffix] += 1
                self.example = self.example or sample.parts[suffix].member.name

    def merge(self, other: KeyCounts) -> None:
        """Add the counts of another tar."""
        self.runs += other.runs
        self.dotted += other.dotted
        self.numbered += other.numbered
        for suffix, count in other.suffixes.items():
            if suffix in self.suffixes or len(self.suffixes) < MOST_SUFFIXES:
                self.suffixes[suffix] += count
        self.lost_by_first += other.lost_by_first
        self.lost_by_last += other.lost_by_last
        self.orphans_by_last += other.orphans_by_last
        self.example = self.example or other.example

    def recur(self) -> bool:
        """Return whether the dotted suffixes recur over samples, as webdataset means them: `seg.png`, not `0017.png`."""
        distinct = len(self.suffixes)
        return 0 < 2 * distinct <= min(self.runs, self.dotted) and 2 * self.numbered <= self.dotted

    def rule(self) -> str:
        """Return `first-dot` or `last-dot`: the one that loses nothing; webdataset's if its suffixes recur, or if both lose."""
        if not self.dotted or self.recur():
            return "first-dot"
        return "first-dot" if self.lost_by_last or self.orphans_by_last else "last-dot"
