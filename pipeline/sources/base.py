"""What every input looks like to the plan and to the work: a stream of plan rows, then a stream of records per row."""

from __future__ import annotations

import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Protocol

import fsspec.compression

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, ConfigError, Reason, SourceError, Stage, shorten
from tokenshards.pipeline.records import FailedRecord, ImageRecord, Label, PlanRow
from tokenshards.pipeline.sources.fetch import display_uri, fetch_file, refuse_unmounted
from tokenshards.pipeline.sources.table_uris import is_outside
from tokenshards.pipeline.storage.store import Store

__all__ = [
    "HIDDEN",
    "ImageSource",
    "LabelType",
    "MetaType",
    "RangeReader",
    "SourceSummary",
    "as_label",
    "as_meta",
    "check_unchanged",
    "extension",
    "file_record",
    "infer_label_type",
    "infer_meta_type",
    "is_hidden",
    "open_stream",
    "read_file_row",
    "readable_text",
    "refuse_options",
    "valid_utf8",
]

LabelType = Literal["int64", "string"]
MetaType = Literal["string", "int64", "float64", "bool"]

MAX_LABELS_COUNTED = 100_000
HIDDEN = "hidden (a name begins with a dot)"
"""What hidden files count as among those that are ignored."""
STREAM_BLOCK_BYTES = 8 << 20
_COMPRESSIONS = (".gz", ".zst")
_NARROW_META_TYPES: tuple[MetaType, ...] = ("bool", "int64", "float64")
_INT64 = range(-(1 << 63), 1 << 63)


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


def valid_utf8(text: str) -> str:
    """Return `text` as it is, but for the lone surrogates that JSON can hold and UTF-8 cannot: they show as `\\ud800`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def integer_in(value: object) -> int | None:
    """Return the int64 that `value` is or that its text states without padding (`7`, not `007`), else None."""
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.removeprefix("-").isdigit() and str(int(value)) == value:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value in _INT64 else None


def as_label(value: object, label_type: LabelType | None) -> Label:
    """Return a label as the type that the plan found; None stays None. Raises BadInput BAD_LABEL where it does not fit."""
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
    """Return a value of a meta column as its planned type; None stays None. Raises BadInput BAD_LABEL where it does not fit."""
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
            pass  # falls through to the refusal below
    raise BadInput(Reason.BAD_LABEL, f"meta.{name} is {shorten(value)}; expected {meta_type}, as planned", Stage.FETCH)


def infer_label_type(values: Iterable[object]) -> LabelType | None:
    """Return int64 if every value that is not None is an integer or the text of one, string otherwise, None where there is no value."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    return "int64" if all(integer_in(value) is not None for value in present) else "string"


def infer_meta_type(values: Iterable[object]) -> MetaType:
    """Return the narrowest of bool, int64, float64 and string that holds every value; string where there is none."""
    present = [value for value in values if value is not None]
    for meta_type in _NARROW_META_TYPES if present else ():
        try:
            for value in present:
                as_meta("", value, meta_type)
        except BadInput:
            continue
        return meta_type
    return "string"


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


class RangeReader(io.RawIOBase):
    """A stored object as a seekable file whose every read is one checked, retried range request.

    A failing store shows as TransientStorageError or MissingObjectError, never as the OSError or the short read that a damaged
    container would show as; so what else a parser raises is the fault of the content.
    """

    def __init__(self, store: Store, path: str, size: int) -> None:
        super().__init__()
        self._store, self._path, self._size, self._position = store, path, size, 0

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._store.read(self._path, self._position, stop)
        if len(data) != stop - self._position:
            detail = f"{len(data)} bytes at {self._position}, expected {stop - self._position}: it was cut while it was read"
            raise BadInput(Reason.CHANGED_SINCE_PLAN, f"{display_uri(self._store, self._path)}: {detail}", Stage.FETCH)
        buffer[: len(data)] = data
        self._position = stop
        return len(data)


def open_stream(store: Store, path: str, size: int) -> BinaryIO:
    """Return an object as a buffered byte stream, decompressed where its name ends in .gz, .tgz or .zst."""
    raw: Any = io.BufferedReader(RangeReader(store, path, size), STREAM_BLOCK_BYTES)
    for ending, codec in ((".gz", "gzip"), (".tgz", "gzip"), (".zst", "zstd")):
        if path.lower().endswith(ending):
            if codec not in fsspec.compression.compr:
                raise ConfigError(f"{display_uri(store, path)}: {ending} needs zstandard, which is not here: pip install zstandard")
            raw = fsspec.compression.compr[codec](raw, mode="rb")
    stream: BinaryIO = raw
    return stream
