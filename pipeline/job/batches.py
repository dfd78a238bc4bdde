"""Turn records into the deterministic batches of a shard. Images are decoded inline or in threads ahead of the encoder.

Batch k holds the inputs [kI, (k+1)I) of its shard, where I = B // V. Each input fills V slots, one for each view. A failed or absent
input leaves blank slots, and the last batch is padded, because different batch sizes change some ids even on a CPU. Threads change when a
batch is ready. They never change the content of a batch.

Shapes: B = I * V rows of a batch, V views of an image, H height, W width, C = 3 channels.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.activity import DECODE, doing
from tokenshards.pipeline.config import ImageRules
from tokenshards.pipeline.errors import BadInput
from tokenshards.pipeline.fault_injection import crash_point
from tokenshards.pipeline.images.decode import USUAL_RULES
from tokenshards.pipeline.images.remarks import Remark
from tokenshards.pipeline.job.decoded_rows import DecodedRow, Decoding, MaskDecoding, decode_rows, quarantine_row
from tokenshards.pipeline.records import AbsentRecord, FailedRecord, InputRecord, LeftOutRecord, SourceRecord, Untaken
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.view_policy import ONE_VIEW, ViewPolicy

__all__ = ["CpuSlots", "DecodedBatch", "DecodedRow", "decode_batches"]

CpuSlots = contextlib.AbstractContextManager[Any]
"""A thread holds a slot while it computes."""
UNBOUNDED: CpuSlots = contextlib.nullcontext()


@dataclass(slots=True)
class DecodedBatch:
    """Pixels of one batch, `rows[i]` in slot `slots[i]`; other slots are blank."""

    images_BHWC: npt.NDArray[np.uint8]
    slots: list[int] = field(default_factory=list)
    rows: list[DecodedRow] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Quarantine rows."""
    untaken: Untaken = field(default_factory=Untaken)
    remarks: dict[str, int] = field(default_factory=dict)
    """Remark -> number of images that were taken all the same."""
    inputs: int = 0
    """Inputs of this batch, whether rows, failed or absent."""
    bytes_in: int = 0
    """Encoded bytes of all inputs, including failed inputs."""
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    """The sum over all threads."""


def decode_batches(
    records: Iterator[SourceRecord],
    preprocess: Preprocess,
    batch_rows: int,
    *,
    rules: ImageRules = USUAL_RULES,
    views: ViewPolicy = ONE_VIEW,
    seed: int = 0,
    masks: MaskDecoding | None = None,
    threads: int = 0,
    cpus: CpuSlots = UNBOUNDED,
) -> Generator[DecodedBatch]:
    """Yield the batches of a shard in order. `masks` says how masks are stored; None leaves them undecoded.

    With `threads=0` the caller's thread decodes and holds one encoded image at a time, because encoded images can be large. With threads,
    the next batches are decoded while the consumer uses one batch. Memory then holds at most three more batches of pixels and 2 x `threads`
    encoded images. An exception of `records` is raised after all complete batches. When the generator is closed, the threads stop after
    the current read. A thread holds a slot of `cpus` while it decodes an image. Shards that share `cpus` share this limit.
    """
    decoding = Decoding(preprocess, rules, views, seed, max(1, batch_rows // views.count), masks)
    if threads == 0:
        while (batch := _decode_inline(records, decoding, cpus)).inputs or batch.untaken.left_out:
            yield batch
        return
    with _Decoders(records, decoding, threads, cpus) as decoders:
        yield from decoders.batches()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One decoded input: a row for each view, or a quarantine row. It does not keep the encoded bytes, because they can be large."""

    bytes_in: int
    seconds: float
    rows: tuple[DecodedRow, ...] = ()
    remarks: tuple[Remark, ...] = ()
    failed: dict[str, Any] | None = None
    untaken: AbsentRecord | FailedRecord | None = None


def _next_input(records: Iterator[SourceRecord], batch: DecodedBatch) -> InputRecord | None:
    """Return the next record that takes a slot, None at the end; counts in `batch` what is left out before it."""
    for record in records:
        if not isinstance(record, LeftOutRecord):
            return record
        batch.untaken.take(record)
    return None


def _decode_inline(records: Iterator[SourceRecord], decoding: Decoding, cpus: CpuSlots) -> DecodedBatch:
    batch = DecodedBatch(decoding.blank_pixels())
    last = time.perf_counter()
    for number in range(decoding.inputs):
        record = _next_input(records, batch)
        batch.fetch_seconds += time.perf_counter() - last
        if record is None:
            return batch
        with cpus:
            outcome = _decode_into(batch.images_BHWC, number, record, decoding)
        _take(batch, number, outcome)
        last = time.perf_counter()
    return batch


def _decode_into(images_BHWC: npt.NDArray[np.uint8], number: int, record: InputRecord, decoding: Decoding) -> _Outcome:
    if isinstance(record, AbsentRecord):
        return _Outcome(0, 0.0, untaken=record)
    started = time.perf_counter()
    size = len(record.data or b"")
    if isinstance(record, FailedRecord):
        return _Outcome(size, 0.0, failed=quarantine_row(record, record.error), untaken=record if record.stands_for > 1 else None)
    try:
        with doing(DECODE, record.sample_id):
            crash_point("decode", record.sample_id)
            count = decoding.views.count
            rows, remarks = decode_rows(images_BHWC[number * count : (number + 1) * count], record, decoding)
    except BadInput as error:
        return _Outcome(size, time.perf_counter() - started, failed=quarantine_row(record, error))
    return _Outcome(size, time.perf_counter() - started, rows=rows, remarks=remarks)


def _take(batch: DecodedBatch, number: int, outcome: _Outcome) -> None:
    batch.inputs += 1
    batch.bytes_in += outcome.bytes_in
    batch.decode_seconds += outcome.seconds
    count = len(outcome.rows)
    batch.slots.extend(range(number * count, (number + 1) * count))
    batch.rows.extend(outcome.rows)
    for remark in outcome.remarks:
        batch.remarks[str(remark)] = batch.remarks.get(str(remark), 0) + 1
    if outcome.failed is not None:
        batch.failed.append(outcome.failed)
    if outcome.untaken is not None:
        batch.untaken.take(outcome.untaken)


_Pending = tuple[DecodedBatch, list[Future[_Outcome]]]


class _Decoders:
    """One thread reads records and hands the records to decoding threads, one batch ahead of the consumer."""

    def __init__(self, records: Iterator[SourceRecord], decoding: Decoding, threads: int, cpus: CpuSlots) -> None:
        self._records = records
        self._decoding = decoding
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
            with contextlib.suppress(queue.Empty):  # the feeder may wait for room in the queue
                self._ready.get_nowait()
            self._feeder.join(timeout=0.05)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batches(self) -> Iterator[DecodedBatch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            batch, outcomes = item
            for number, outcome in enumerate(outcomes):
                _take(batch, number, outcome.result())
            del item, outcomes
            yield batch
            del batch  # drop our reference so that the consumer can free the batch

    def _feed(self) -> None:
        last: BaseException | None = None
        try:
            while not self._stopped.is_set():
                batch, outcomes = self._submit_batch()
                if not outcomes and not batch.untaken.left_out:
                    break
                self._ready.put((batch, outcomes))
                del batch, outcomes
        except BaseException as error:  # the consumer of the batches raises the error
            last = error
        self._ready.put(last)

    def _submit_batch(self) -> _Pending:
        batch = DecodedBatch(self._decoding.blank_pixels())
        outcomes: list[Future[_Outcome]] = []
        for number in range(self._decoding.inputs):
            self._room.acquire()  # wait before the read: an image that waits for room must not use memory yet
            begun = time.perf_counter()
            record = None if self._stopped.is_set() else _next_input(self._records, batch)
            batch.fetch_seconds += time.perf_counter() - begun
            if record is None:
                self._room.release()
                break
            outcomes.append(self._pool.submit(self._decode, batch.images_BHWC, number, record))
            del record
        return batch, outcomes

    def _decode(self, images_BHWC: npt.NDArray[np.uint8], number: int, record: InputRecord) -> _Outcome:
        try:
            with self._cpus:
                return _decode_into(images_BHWC, number, record, self._decoding)
        finally:
            self._room.release()
