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
from tokenshards.pipeline.images.decode import USUAL_RULES, decode_image
from tokenshards.pipeline.images.failures import first_bytes
from tokenshards.pipeline.images.remarks import Remark
from tokenshards.pipeline.images.views import decode_views
from tokenshards.pipeline.records import AbsentRecord, FailedRecord, ImageRecord, InputRecord, Label, LeftOutRecord, SourceRecord, Untaken
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.storage.redaction import MASK
from tokenshards.pipeline.view_policy import ONE_VIEW, Box, ViewPolicy

__all__ = ["CpuSlots", "DecodedBatch", "DecodedRow", "decode_batches"]

MAX_QUARANTINED_BYTES = 4 << 20

CpuSlots = contextlib.AbstractContextManager[Any]
"""A thread holds a slot while it computes."""
UNBOUNDED: CpuSlots = contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class DecodedRow:
    """The columns that a shard stores for one view of a decoded image, besides the tokens."""

    sample_id: str
    label: Label
    meta: dict[str, Any]
    width: int
    height: int
    bytes_in: int
    """Encoded bytes of the image, the same for all views of the image."""
    view: int = 0
    box: Box | None = None
    """The crop of the source that the view shows; None if each image has one view."""
    mirrored: bool = False


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
    threads: int = 0,
    cpus: CpuSlots = UNBOUNDED,
) -> Generator[DecodedBatch]:
    """Yield the batches of a shard in order.

    With `threads=0` the caller's thread decodes and holds one encoded image at a time, because encoded images can be large. With threads,
    the next batches are decoded while the consumer uses one batch. Memory then holds at most three more batches of pixels and 2 x `threads`
    encoded images. An exception of `records` is raised after all complete batches. When the generator is closed, the threads stop after
    the current read. A thread holds a slot of `cpus` while it decodes an image. Shards that share `cpus` share this limit.
    """
    decoding = _Decoding(preprocess, rules, views, seed, max(1, batch_rows // views.count))
    if threads == 0:
        while (batch := _decode_inline(records, decoding, cpus)).inputs or batch.untaken.left_out:
            yield batch
        return
    with _Decoders(records, decoding, threads, cpus) as decoders:
        yield from decoders.batches()


@dataclass(frozen=True, slots=True)
class _Decoding:
    """How images become rows; `seed` is the seed of random views."""

    preprocess: Preprocess
    rules: ImageRules
    views: ViewPolicy
    seed: int
    inputs: int
    """Inputs of one batch."""

    def blank(self) -> DecodedBatch:
        size = self.preprocess.size
        return DecodedBatch(np.zeros((self.inputs * self.views.count, size, size, 3), np.uint8))


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


def _decode_inline(records: Iterator[SourceRecord], decoding: _Decoding, cpus: CpuSlots) -> DecodedBatch:
    batch = decoding.blank()
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


def _decode_into(images_BHWC: npt.NDArray[np.uint8], number: int, record: InputRecord, decoding: _Decoding) -> _Outcome:
    if isinstance(record, AbsentRecord):
        return _Outcome(0, 0.0, untaken=record)
    started = time.perf_counter()
    size = len(record.data or b"")
    if isinstance(record, FailedRecord):
        return _Outcome(size, 0.0, failed=_quarantine_row(record, record.error), untaken=record if record.stands_for > 1 else None)
    try:
        with doing(DECODE, record.sample_id):
            crash_point("decode", record.sample_id)
            rows, remarks = _decode_rows(images_BHWC, number, record, decoding)
    except BadInput as error:
        return _Outcome(size, time.perf_counter() - started, failed=_quarantine_row(record, error))
    return _Outcome(size, time.perf_counter() - started, rows=rows, remarks=remarks)


def _decode_rows(
    images_BHWC: npt.NDArray[np.uint8], number: int, record: ImageRecord, decoding: _Decoding
) -> tuple[tuple[DecodedRow, ...], tuple[Remark, ...]]:
    known = (record.sample_id, record.label, record.meta)
    count, size = decoding.views.count, len(record.data)
    if count == 1:
        image = decode_image(record.data, decoding.preprocess, decoding.rules)
        images_BHWC[number] = image.pixels_HWC
        return (DecodedRow(*known, image.width, image.height, size),), image.remarks
    found = decode_views(
        record.data, decoding.preprocess, decoding.views, seed=decoding.seed, sample_id=record.sample_id, rules=decoding.rules
    )
    images_BHWC[number * count : (number + 1) * count] = found.pixels_VHWC
    seen = enumerate(zip(found.boxes, found.mirrored, strict=True))
    return tuple(DecodedRow(*known, found.width, found.height, size, view, box, mirrored) for view, (box, mirrored) in seen), found.remarks


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


def _quarantine_row(record: ImageRecord | FailedRecord, error: BadInput) -> dict[str, Any]:
    data, detail = record.data, error.detail
    if isinstance(record, ImageRecord) and not record.keep_bytes:  # a message must not show them either
        data, detail = None, detail.replace(first_bytes(record.data), MASK)
    elif data is not None and len(data) > MAX_QUARANTINED_BYTES:
        data = None
    return {
        "sample_id": record.sample_id,
        "uri": record.uri,
        "stage": str(error.stage),
        "reason": str(error.reason),
        "detail": detail,
        "label": None if record.label is None else str(record.label),
        "data": data,
    }


_Pending = tuple[DecodedBatch, list[Future[_Outcome]]]


class _Decoders:
    """One thread reads records and hands the records to decoding threads, one batch ahead of the consumer."""

    def __init__(self, records: Iterator[SourceRecord], decoding: _Decoding, threads: int, cpus: CpuSlots) -> None:
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
        batch = self._decoding.blank()
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
