"""The interface of every source: a stream of plan rows, then a stream of records per row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, SourceError, Stage, shorten
from tokenshards.pipeline.records import FailedRecord, ImageRecord, PlanRow, SourceRecord
from tokenshards.pipeline.sources.fetch import fetch_file, refuse_unmounted
from tokenshards.pipeline.sources.hosts.uris import is_outside
from tokenshards.pipeline.sources.summary import SourceSummary
from tokenshards.pipeline.storage.store import Store

__all__ = [
    "ImageSource",
    "bad_mask",
    "check_unchanged",
    "file_record",
    "read_file_row",
    "readable_text",
    "refuse_options",
]


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

    def read(self, row: PlanRow) -> Iterator[SourceRecord]:
        """Yield a record for each input of one slice, and for what it leaves out; raises only TransientStorageError."""


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


def file_record(store: Store, row: PlanRow, fetched: bytes | BadInput, mask: bytes | BadInput | None = None) -> ImageRecord | FailedRecord:
    """Return the record of a `file` row from the bytes or the error of its fetch, and of that of its mask."""
    uri = store.place(row.path)
    if isinstance(fetched, BadInput):
        return FailedRecord(sample_id=row.sample_id, error=fetched, label=row.label, uri=uri)
    keep = row.version != "" or not is_outside(store, row.path)  # only the rows of tables have no version
    if isinstance(mask, BadInput):
        return FailedRecord(sample_id=row.sample_id, error=bad_mask(mask), data=fetched if keep else None, label=row.label, uri=uri)
    return ImageRecord(sample_id=row.sample_id, data=fetched, label=row.label, meta=row.meta, uri=uri, keep_bytes=keep, mask=mask)


def bad_mask(error: BadInput) -> BadInput:
    """Return why an image cannot be taken whose mask could not be fetched; a change and the store's own words keep their reason."""
    kept = error.reason in (Reason.CHANGED_SINCE_PLAN, Reason.UNREADABLE, Reason.BAD_MASK)
    return BadInput(error.reason if kept else Reason.BAD_MASK, f"its mask: {error.detail}", error.stage)


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
