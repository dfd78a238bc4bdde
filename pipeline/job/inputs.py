"""Read the inputs of one shard from planned rows of any kind. Each input comes exactly once: as an image, as a failure, or as absent.

What a rule leaves out of a container comes too, so that a commit can account for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, Stage, UnreadableObjectError
from tokenshards.pipeline.job.probe_urls import ProbeUrls
from tokenshards.pipeline.planning.plan import Plan
from tokenshards.pipeline.records import AbsentRecord, FailedRecord, ImageRecord, LeftOutRecord, PlanRow, SourceRecord
from tokenshards.pipeline.sources import read_slice
from tokenshards.pipeline.sources.base import file_record
from tokenshards.pipeline.sources.fetch import ImageAndMask, expected_bytes, fetch_ahead, fetch_file, urls_to_probe
from tokenshards.pipeline.sources.mask_folder import fetch_mask, mask_store
from tokenshards.pipeline.storage.store import Store, is_absolute
from tokenshards.pipeline.words import counted

__all__ = ["describe_unreadable", "read_inputs"]

REMOTE_FETCH_THREADS = 32
"""Threads of one shard. The store's request limit (storage/request_limit.py) decides how many requests run at once in the process."""
ROWS_AHEAD = 2 * REMOTE_FETCH_THREADS
URLS_AHEAD = 16 * REMOTE_FETCH_THREADS
"""Images of other hosts to read ahead of one that is slow or dead, if their bytes find room (AHEAD_BYTES)."""


def read_inputs(
    store: Store, config: SourceConfig, plan: Plan, rows: list[PlanRow], killers: frozenset[str], more_urls: Iterable[str] = ()
) -> Iterator[SourceRecord]:
    """Yield every input of the planned rows exactly once, in plan order, and what is left out of their containers.

    Later inputs with an id that came before fail as duplicates; an absent input leaves its id to others.

    `killers` are not read and fail as KILLED_WORKER. `more_urls` are others of the same table, whose hosts may be probed. Raises only
    TransientStorageError.
    """
    seen: set[str] = set()
    for record in _read_rows(store, config, plan, rows, killers, more_urls):
        if isinstance(record, AbsentRecord | LeftOutRecord):
            yield record
            continue
        if record.sample_id in seen and isinstance(record, ImageRecord):
            error = BadInput(Reason.DUPLICATE_ID, "another input of this shard has the same sample id", Stage.FETCH)
            data = record.data if record.keep_bytes else None
            yield FailedRecord(sample_id=record.sample_id, error=error, data=data, label=record.label, uri=record.uri)
            continue
        seen.add(record.sample_id)
        yield record


def _read_rows(
    store: Store, config: SourceConfig, plan: Plan, rows: list[PlanRow], killers: frozenset[str], more_urls: Iterable[str]
) -> Iterator[SourceRecord]:
    files = [row for row in rows if row.kind == "file"]
    masks = mask_store(store, config.masks) or store
    local = store.is_local and masks.is_local and not any(is_absolute(path) for row in files for path in (row.path, row.mask_path or ""))
    threads = 0 if local else REMOTE_FETCH_THREADS
    wanted = [row for row in files if row.sample_id not in killers and not row.skip]
    others = ProbeUrls(urls_to_probe(wanted), more_urls)

    def fetch(row: PlanRow) -> bytes | ImageAndMask | UnreadableObjectError:
        try:
            data = fetch_file(store, row, config, others=others)
            return data if row.mask_path is None else ImageAndMask(data, mask_of(row))
        except UnreadableObjectError as error:
            return error

    def mask_of(row: PlanRow) -> bytes | BadInput:
        try:
            return fetch_mask(store, row, config, others)
        except BadInput as error:
            return error

    ahead = URLS_AHEAD if others else ROWS_AHEAD
    fetched = fetch_ahead(wanted, fetch, threads=threads, ahead=ahead, size_of=expected_bytes)
    unreadable: list[UnreadableObjectError] = []
    for row in rows:
        if row.kind != "file":
            committed = frozenset(row.skip or ())
            try:
                for record in read_slice(store, row, config, plan.label_type, plan.meta_types):  # type: ignore[arg-type]
                    if unreadable:
                        break  # the shard cannot be committed any more, and this slice is readable
                    if isinstance(record, AbsentRecord | LeftOutRecord):
                        if not committed:  # else the generation that committed samples of this tar has counted them
                            yield record
                    elif record.sample_id not in committed:
                        yield _killer(record.sample_id, record.uri) if record.sample_id in killers else record
            except UnreadableObjectError as refused:
                unreadable.append(refused)
        elif row.skip:
            error = BadInput(Reason.DUPLICATE_ID, "an earlier generation committed another input with the same sample id", Stage.FETCH)
            yield FailedRecord(sample_id=row.sample_id, error=error, label=row.label, uri=store.place(row.path))
        elif row.sample_id in killers:
            yield _killer(row.sample_id, store.place(row.path))
        else:
            _, data = next(fetched)
            if isinstance(data, UnreadableObjectError):
                unreadable.append(data)
            elif not unreadable:  # after a first unreadable object we read the others only to name all unreadable ones
                mask = data.mask if isinstance(data, ImageAndMask) else None
                yield file_record(store, row, data.image if isinstance(data, ImageAndMask) else data, mask)
    if unreadable:
        raise _all_unreadable(unreadable)


def _all_unreadable(errors: list[UnreadableObjectError]) -> UnreadableObjectError:
    objects = tuple(name for error in errors for name in error.objects)
    return UnreadableObjectError(f"{describe_unreadable(len(objects), objects)} ({errors[0].words})", objects=objects)


def _killer(sample_id: str, uri: str) -> FailedRecord:
    error = BadInput(Reason.KILLED_WORKER, "the worker process died or hung each time that a worker handled this input", Stage.DECODE)
    return FailedRecord(sample_id=sample_id, error=error, uri=uri)


def describe_unreadable(count: int, examples: Sequence[str]) -> str:
    """Return a message about objects that cannot be read, with what to do."""
    shown = ", ".join(examples[:3])
    objects = counted(count, "object cannot be read although its store answers", "objects cannot be read although their stores answer")
    return (
        f"{objects} for others, such as {shown}. Restore archived objects or grant the right to read "
        "them, then run the same command again; or leave them out and quarantine them with --unreadable quarantine"
    )
