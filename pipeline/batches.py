"""Records in, batches of decoded pictures out: the deterministic batches of a shard, prepared inline or ahead of the encoder.

Batch k holds the inputs [kB, (k+1)B) of its shard; a failed input leaves a blank slot and the last batch is padded, because another
batching flips ids even on a CPU. Threads change when a batch is ready, never what is in it.

Shapes: B rows of a batch, H height, W width, C = 3 channels.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.decode import decode_image
from pipeline.errors import BadInput
from pipeline.faults import crash_point
from pipeline.records import FailedRecord, ImageRecord, Label
from pipeline.shards.spec import Preprocess

__all__ = ["CpuSlots", "DecodedBatch", "DecodedRow", "decode_batches"]

MAX_QUARANTINED_BYTES = 4 << 20

CpuSlots = contextlib.AbstractContextManager[Any]
"""Held by a thread that computes."""
UNBOUNDED: CpuSlots = contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class DecodedRow:
    """What a shard keeps of a decoded picture besides its tokens."""

    sample_id: str
    label: Label
    meta: dict[str, Any]
    width: int
    height: int
    bytes_in: int


@dataclass(slots=True)
class DecodedBatch:
    """Pixels of one batch, `rows[i]` in slot `slots[i]`; other slots are blank."""

    images_BHWC: npt.NDArray[np.uint8]
    slots: list[int] = field(default_factory=list)
    rows: list[DecodedRow] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Quarantine rows."""
    inputs: int = 0
    bytes_in: int = 0
    """Encoded bytes of all inputs, failed ones too."""
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    """Of all threads together."""


def decode_batches(
    records: Iterator[ImageRecord | FailedRecord],
    preprocess: Preprocess,
    batch_rows: int,
    *,
    threads: int = 0,
    cpus: CpuSlots = UNBOUNDED,
) -> Generator[DecodedBatch]:
    """Yield the batches of a shard in order.

    `threads=0` decodes inline and holds one encoded picture at a time, because they can be large. With threads a batch is decoded while the
    one before it is in use: at most three batches of pixels besides it, and 2 x `threads` encoded pictures. What `records` raises is
    raised once the whole batches before it are taken. Closing the generator stops the threads, after the read that is under way.
    `cpus` is held while a picture is decoded, and bounds how many are at once over all shards that share it.
    """
    if threads == 0:
        while (batch := _decode_inline(records, preprocess, batch_rows, cpus)).inputs:
            yield batch
        return
    with _Decoders(records, preprocess, batch_rows, threads, cpus) as decoders:
        yield from decoders.batches()


def _blank(preprocess: Preprocess, batch_rows: int) -> DecodedBatch:
    return DecodedBatch(np.zeros((batch_rows, preprocess.size, preprocess.size, 3), np.uint8))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One input after its decoding: a row or a quarantine row. The encoded bytes are gone, because they can be large."""

    bytes_in: int
    seconds: float
    row: DecodedRow | None = None
    failed: dict[str, Any] | None = None


def _decode_inline(records: Iterator[ImageRecord | FailedRecord], preprocess: Preprocess, batch_rows: int, cpus: CpuSlots) -> DecodedBatch:
    batch = _blank(preprocess, batch_rows)
    last = time.perf_counter()
    for slot, record in enumerate(itertools.islice(records, batch_rows)):
        batch.fetch_seconds += time.perf_counter() - last
        with cpus:
            outcome = _decode_into(batch.images_BHWC, slot, record, preprocess)
        _take(batch, slot, outcome)
        last = time.perf_counter()
    batch.fetch_seconds += time.perf_counter() - last
    return batch


def _decode_into(images_BHWC: npt.NDArray[np.uint8], slot: int, record: ImageRecord | FailedRecord, preprocess: Preprocess) -> _Outcome:
    started = time.perf_counter()
    size = len(record.data or b"")
    if isinstance(record, FailedRecord):
        return _Outcome(size, 0.0, failed=_quarantine_row(record, record.error))
    crash_point("decode", record.sample_id)
    try:
        image = decode_image(record.data, preprocess)
    except BadInput as error:
        return _Outcome(size, time.perf_counter() - started, failed=_quarantine_row(record, error))
    images_BHWC[slot] = image.pixels_HWC
    row = DecodedRow(record.sample_id, record.label, record.meta, image.width, image.height, size)
    return _Outcome(size, time.perf_counter() - started, row=row)


def _take(batch: DecodedBatch, slot: int, outcome: _Outcome) -> None:
    batch.inputs += 1
    batch.bytes_in += outcome.bytes_in
    batch.decode_seconds += outcome.seconds
    if outcome.row is not None:
        batch.slots.append(slot)
        batch.rows.append(outcome.row)
    elif outcome.failed is not None:
        batch.failed.append(outcome.failed)


def _quarantine_row(record: ImageRecord | FailedRecord, error: BadInput) -> dict[str, Any]:
    data = record.data if record.data is not None and len(record.data) <= MAX_QUARANTINED_BYTES else None
    return {
        "sample_id": record.sample_id,
        "uri": record.uri,
        "stage": str(error.stage),
        "reason": str(error.reason),
        "detail": error.detail,
        "label": None if record.label is None else str(record.label),
        "data": data,
    }


_Pending = tuple[DecodedBatch, list[Future[_Outcome]]]


class _Decoders:
    """A thread that reads records and hands them to decoding threads, one batch ahead of the one who takes them."""

    def __init__(
        self, records: Iterator[ImageRecord | FailedRecord], preprocess: Preprocess, batch_rows: int, threads: int, cpus: CpuSlots
    ) -> None:
        self._records = records
        self._preprocess = preprocess
        self._batch_rows = batch_rows
        self._cpus = cpus
        self._room = threading.Semaphore(2 * threads)
        self._stopped = threading.Event()
        self._ready: queue.Queue[_Pending | BaseException | None] = queue.Queue(maxsize=1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._feeder = threading.Thread(target=self._feed, name="feed", daemon=True)

    def __enter__(self) -> _Decoders:
        self._feeder.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        while self._feeder.is_alive():
            with contextlib.suppress(queue.Empty):  # it may wait for room in the queue
                self._ready.get_nowait()
            self._feeder.join(timeout=0.05)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batches(self) -> Iterator[DecodedBatch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            batch, outcomes = item
            for slot, outcome in enumerate(outcomes):
                _take(batch, slot, outcome.result())
            del item, outcomes
            yield batch
            del batch  # while the next one is awaited, the one who took it decides how long it lives

    def _feed(self) -> None:
        last: BaseException | None = None
        try:
            while not self._stopped.is_set() and (pending := self._submit_batch())[1]:
                self._ready.put(pending)
        except BaseException as error:  # it belongs to the one who takes the batches
            last = error
        self._ready.put(last)

    def _submit_batch(self) -> _Pending:
        batch = _blank(self._preprocess, self._batch_rows)
        outcomes: list[Future[_Outcome]] = []
        for slot in range(self._batch_rows):
            self._room.acquire()  # before the read: what waits for room must not be in memory yet
            begun = time.perf_counter()
            record = None if self._stopped.is_set() else next(self._records, None)
            batch.fetch_seconds += time.perf_counter() - begun
            if record is None:
                self._room.release()
                break
            outcomes.append(self._pool.submit(self._decode, batch.images_BHWC, slot, record))
            del record
        return batch, outcomes

    def _decode(self, images_BHWC: npt.NDArray[np.uint8], slot: int, record: ImageRecord | FailedRecord) -> _Outcome:
        try:
            with self._cpus:
                return _decode_into(images_BHWC, slot, record, self._preprocess)
        finally:
            self._room.release()
