"""The interface of every source: a stream of plan rows, then a stream of records per row."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, SourceError, Stage, shorten
from tokenshards.pipeline.records import FailedRecord, ImageRecord, Label, PlanRow
from tokenshards.pipeline.sources.fetch import fetch_file, refuse_unmounted
from tokenshards.pipeline.sources.labels import LabelType, MetaType
from tokenshards.pipeline.sources.table_uris import is_outside
from tokenshards.pipeline.storage.store import Store

__all__ = [
    "HIDDEN",
    "ImageSource",
    "SourceSummary",
    "check_unchanged",
    "extension",
    "file_record",
    "is_hidden",
    "read_file_row",
    "readable_text",
    "refuse_options",
]


MAX_LABELS_COUNTED = 100_000
HIDDEN = "hidden (a name begins with a dot)"
"""Name of hidden files in the count of ignored files."""
_COMPRESSIONS = (".gz", ".zst")


@dataclass(slots=True)
class SourceSummary:
    """Counts of matched and ignored files; the listing of the source fills it."""

    noun: str = "image"
    """Word for one matched file."""
    files: int = 0
    bytes: int = 0
    rows: int = -1
    """Number of table rows; -1 if the inputs are files or are counted later."""
    matched: Counter[str] = field(default_factory=Counter)
    """Matched files by extension."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Other files by extension, and the hidden files."""
    beside: str = ""
    """A sentence about inputs of another kind that were left out."""
    examples: list[str] = field(default_factory=list)
    labels: set[int | str] = field(default_factory=set)
    """Distinct labels found by the listing, up to 100,000."""
    label_type: LabelType | None = None
    meta_types: dict[str, MetaType] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Further sentences for the user: where the labels come from, or how to get labels."""

    def take(self, name: str, size: int, kind: str | None = None) -> None:
        """Count a matched file of `size` bytes; `kind` is its extension if the caller knows it."""
        self.files += 1
        if size > 0:
            self.bytes += size
        self.matched[kind or extension(name)] += 1
        if len(self.examples) < 3:
            self.examples.append(name)

    def take_label(self, label: Label) -> None:
        """Add a label to the distinct labels; None adds nothing."""
        if label is not None and len(self.labels) < MAX_LABELS_COUNTED:
            self.labels.add(label)

    def lines(self) -> list[str]:
        """Return the summary as lines of text: matched files, notes, ignored files, examples."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.matched.most_common())
        rows = f", {self.rows} rows" if self.rows >= 0 else ""
        more = "+" if len(self.labels) == MAX_LABELS_COUNTED else ""
        labels = f", {len(self.labels)}{more} labels" if self.labels else ""
        lines = [
            f"{self.files} {self.noun}{'' if self.files == 1 else 's'} ({kinds}), {self.bytes / 1e6:.1f} MB{rows}{labels}",
            *self.notes,
            *([self.beside] if self.beside else []),
        ]
        if self.ignored:
            lines.append("ignored: " + ", ".join(f"{count} {kind}" for kind, count in self.ignored.most_common(8)))
        if self.examples:
            lines.append("for example " + ", ".join(self.examples))
        return lines


class ImageSource(Protocol):
    """One kind of input. The driver calls `list_rows` at planning; workers call `read`."""

    kind: str
    """`folder`, `tar` or `table`."""
    ordered: bool
    """True if the plan must keep the order of the rows, because reading them in another order costs too much."""
    store: Store
    config: SourceConfig
    summary: SourceSummary

    @property
    def root(self) -> str:
        """The place that row paths are relative to: an absolute path, or a URL without credentials."""

    def list_rows(self) -> Iterator[PlanRow]:
        """Yield every slice of the source, one folder or table block in memory at a time, and fill `summary`.

        Raises SourceError if the source is not what its name says, TransientStorageError if the store fails.
        """

    def read(self, row: PlanRow) -> Iterator[ImageRecord | FailedRecord]:
        """Yield a record for each input of one slice; raises only TransientStorageError."""


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


def is_hidden(path: str) -> bool:
    """Return whether a path below a source names a hidden file or folder. macOS and file browsers create such files (`._1.jpg`)."""
    return path.startswith(".") or "/." in path


def refuse_options(config: SourceConfig, where: str, kind: str, **expected: str) -> None:
    """Raise SourceError if the user gave an option that this kind of source cannot use; `expected` maps option names to the reason."""
    for name, why in expected.items():
        if config.rules > 1 and getattr(config, name):
            option = f"--{name.replace('_', '-')}"
            raise SourceError(f"{where} is {kind}, and {option} was given as {shorten(getattr(config, name))}: {why}. Leave {option} out")


def readable_text(name: str) -> str:
    """Return a file name as valid UTF-8; invalid bytes become escapes such as `\\xff`."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_file_row(store: Store, row: PlanRow, config: SourceConfig) -> ImageRecord | FailedRecord:
    """Fetch the input of a `file` row; raises only TransientStorageError."""
    try:
        return file_record(store, row, fetch_file(store, row, config))
    except BadInput as error:
        return file_record(store, row, error)


def file_record(store: Store, row: PlanRow, fetched: bytes | BadInput) -> ImageRecord | FailedRecord:
    """Return the record of a `file` row from the bytes or the error of its fetch."""
    uri = store.place(row.path)
    if isinstance(fetched, BadInput):
        return FailedRecord(sample_id=row.sample_id, error=fetched, label=row.label, uri=uri)
    keep = row.version != "" or not is_outside(store, row.path)  # only the rows of tables have no version
    return ImageRecord(sample_id=row.sample_id, data=fetched, label=row.label, meta=row.meta, uri=uri, keep_bytes=keep)


def check_unchanged(store: Store, row: PlanRow) -> None:
    """Check with one request that a container is still as planned; raises BadInput if it is missing or changed."""
    now = store.info(row.path)
    if now is None:
        if store.is_local:
            refuse_unmounted(store, row.path)
        raise BadInput(Reason.MISSING, f"{store.place(row.path)}: the object does not exist", Stage.FETCH)
    if not now.regular:
        raise BadInput(Reason.NOT_A_FILE, f"{store.place(row.path)} is not a file", Stage.FETCH)
    if row.size not in (-1, now.size) or row.version not in ("", now.version):
        planned, seen = f"{row.size} bytes, version {row.version}", f"{now.size} bytes, version {now.version}"
        raise BadInput(Reason.CHANGED_SINCE_PLAN, f"planned with {planned}; now {seen}", Stage.FETCH)
