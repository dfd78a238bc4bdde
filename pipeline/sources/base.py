"""What every input looks like to the plan and to the work: a stream of plan rows, then a stream of records per row."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, SourceError, Stage, shorten
from tokenshards.pipeline.records import FailedRecord, ImageRecord, Label, PlanRow
from tokenshards.pipeline.sources.fetch import display_uri, fetch_file, refuse_unmounted
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
"""What hidden files count as among those that are ignored."""
_COMPRESSIONS = (".gz", ".zst")


@dataclass(slots=True)
class SourceSummary:
    """What was matched and what was not; filled while the source is listed."""

    noun: str = "image"
    """What one matched file is called."""
    files: int = 0
    bytes: int = 0
    rows: int = -1
    """Rows of tables; -1 where the inputs are files or are counted later."""
    matched: Counter[str] = field(default_factory=Counter)
    """Files by extension."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Other files by extension, and hidden ones."""
    beside: str = ""
    """What was not taken though it might have been, in words."""
    examples: list[str] = field(default_factory=list)
    labels: set[int | str] = field(default_factory=set)
    """Distinct labels met while listing, up to 100,000."""
    label_type: LabelType | None = None
    meta_types: dict[str, MetaType] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What a user should know besides: where the labels came from, or how to get some."""

    def take(self, name: str, size: int, kind: str | None = None) -> None:
        """Count a matched file of `size` bytes; `kind` is its extension where that is known already."""
        self.files += 1
        if size > 0:
            self.bytes += size
        self.matched[kind or extension(name)] += 1
        if len(self.examples) < 3:
            self.examples.append(name)

    def take_label(self, label: Label) -> None:
        """Count a label; None counts nothing."""
        if label is not None and len(self.labels) < MAX_LABELS_COUNTED:
            self.labels.add(label)

    def lines(self) -> list[str]:
        """Return the summary as text: what was matched, notes, what was ignored, examples."""
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
    """One kind of input. `list_rows` runs in the driver at planning; `read` runs where the work is."""

    kind: str
    """`folder`, `tar` or `table`."""
    ordered: bool
    """True where the plan keeps the order of the rows, because reading out of order costs too much."""
    store: Store
    config: SourceConfig
    summary: SourceSummary

    @property
    def root(self) -> str:
        """Where the paths of the rows begin: an absolute path or a URL without credentials."""

    def list_rows(self) -> Iterator[PlanRow]:
        """Yield every slice of the source, one folder or table block in memory at a time, and fill `summary`.

        Raises SourceError where the source cannot be what it claims to be, TransientStorageError when the store fails.
        """

    def read(self, row: PlanRow) -> Iterator[ImageRecord | FailedRecord]:
        """Yield a record for each input of one slice; TransientStorageError alone is raised."""


def extension(name: str) -> str:
    """Return the lower-case extension of a path with its dot, and that of the content of a compressed file before it: `.csv.gz`."""
    name = name.lower()
    dot = name.rfind(".")
    if dot > 0 and name[dot - 1] not in "./" and "/" not in name[dot:] and name[dot:] not in _COMPRESSIONS:
        return name[dot:]  # what `splitext` says too, for nearly every file and in half its time
    stem, last = posixpath.splitext(name)
    if last in _COMPRESSIONS:
        return posixpath.splitext(stem)[1] + last
    return last or "without extension"


def is_hidden(path: str) -> bool:
    """Return whether a path below a source names a hidden file or folder: macOS and file browsers make them beside images (`._1.jpg`)."""
    return path.startswith(".") or "/." in path


def refuse_options(config: SourceConfig, where: str, kind: str, **expected: str) -> None:
    """Raise SourceError where an option was given that this kind of source cannot follow; `expected` says why, by name of the option."""
    for name, why in expected.items():
        if config.rules > 1 and getattr(config, name):
            option = f"--{name.replace('_', '-')}"
            raise SourceError(f"{where} is {kind}, and {option} was given as {shorten(getattr(config, name))}: {why}. Leave {option} out")


def readable_text(name: str) -> str:
    """Return a file name as valid UTF-8; bytes that are not show as `\\xff`."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_file_row(store: Store, row: PlanRow, config: SourceConfig) -> ImageRecord | FailedRecord:
    """Fetch the input of a `file` row; TransientStorageError alone is raised."""
    try:
        return file_record(store, row, fetch_file(store, row, config))
    except BadInput as error:
        return file_record(store, row, error)


def file_record(store: Store, row: PlanRow, fetched: bytes | BadInput) -> ImageRecord | FailedRecord:
    """Return the record of a `file` row with what its fetch gave."""
    uri = display_uri(store, row.path)
    if isinstance(fetched, BadInput):
        return FailedRecord(sample_id=row.sample_id, error=fetched, label=row.label, uri=uri)
    keep = not is_outside(store, row.path)
    return ImageRecord(sample_id=row.sample_id, data=fetched, label=row.label, meta=row.meta, uri=uri, keep_bytes=keep)


def check_unchanged(store: Store, row: PlanRow) -> None:
    """Ask the store once whether a container is still what was planned; raises BadInput where it is missing or changed."""
    now = store.info(row.path)
    if now is None:
        if store.is_local:
            refuse_unmounted(store, row.path)
        raise BadInput(Reason.MISSING, f"{display_uri(store, row.path)}: the object does not exist", Stage.FETCH)
    if not now.regular:
        raise BadInput(Reason.NOT_A_FILE, f"{display_uri(store, row.path)} is not a file", Stage.FETCH)
    if row.size not in (-1, now.size) or row.version not in ("", now.version):
        planned, seen = f"{row.size} bytes, version {row.version}", f"{now.size} bytes, version {now.version}"
        raise BadInput(Reason.CHANGED_SINCE_PLAN, f"planned with {planned}; now {seen}", Stage.FETCH)
