"""decode_batches: the same batches however many threads make them, and threads that end whatever happens."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokenshards.pipeline.config import ImageRules
from tokenshards.pipeline.errors import BadInput, Reason, Stage, TransientStorageError
from tokenshards.pipeline.images.decode import DecodedImage, decode_image
from tokenshards.pipeline.job import decoded_rows
from tokenshards.pipeline.job.batches import DecodedBatch, decode_batches
from tokenshards.pipeline.job.decoded_rows import MAX_QUARANTINED_BYTES
from tokenshards.pipeline.records import AbsentRecord, FailedRecord, ImageRecord, LeftOutRecord, SourceRecord
from tokenshards.pipeline.shards.spec import Preprocess

Record = SourceRecord
PREPROCESS = Preprocess(size=8)
SECONDS = 30.0
"""Bound of every wait."""


def jpeg(seed: int) -> bytes:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 9, 3), np.uint8))
    written = io.BytesIO()
    image.save(written, "JPEG")
    return written.getvalue()


JPEGS = [jpeg(seed) for seed in range(4)]


def good(index: int) -> ImageRecord:
    return ImageRecord(sample_id=f"good-{index}", data=JPEGS[index % 4], label=index, meta={"n": index}, uri=f"file/{index}")


def record_of(index: int, kind: str) -> Record:
    if kind == "good":
        return good(index)
    if kind == "bad":
        return ImageRecord(sample_id=f"bad-{index}", data=b"no image", label="x", uri=f"file/{index}")
    if kind == "absent":
        return AbsentRecord(sample_id=f"absent-{index}")
    if kind == "left out":
        return LeftOutRecord(kind="hidden", count=index + 1, example=f"hidden-{index}")
    error = BadInput(Reason.MISSING, "gone", Stage.FETCH)
    return FailedRecord(sample_id=f"failed-{index}", error=error, data=None if index % 2 else b"what there was")


def described(batch: DecodedBatch) -> dict[str, Any]:
    """What must not depend on threads: all but the times."""
    fields = {name: getattr(batch, name) for name in ("slots", "rows", "failed", "untaken", "inputs", "bytes_in")}
    return {**fields, "rows": [asdict(row) for row in batch.rows], "pixels": batch.images_BHWC.tobytes(), "shape": batch.images_BHWC.shape}


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "feed"))]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came to this"
        time.sleep(0.002)


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["good", "bad", "failed", "absent", "left out"]), max_size=24),
    batch_rows=st.integers(1, 9),
    threads=st.sampled_from([1, 4]),
)
def test_threads_change_nothing_in_a_batch(kinds: list[str], batch_rows: int, threads: int) -> None:
    records = [record_of(index, kind) for index, kind in enumerate(kinds)]
    inline = [described(batch) for batch in decode_batches(iter(records), PREPROCESS, batch_rows)]
    threaded = [described(batch) for batch in decode_batches(iter(records), PREPROCESS, batch_rows, threads=threads)]
    assert threaded == inline
    inputs = sum(kind != "left out" for kind in kinds)
    sizes = [min(batch_rows, inputs - start) for start in range(0, inputs, batch_rows)]
    assert [batch["inputs"] for batch in inline if batch["inputs"]] == sizes, "what is left out takes no slot"
    assert len(inline) - len(sizes) in (0, 1), "only what is left out behind the last full batch makes a batch without inputs"
    assert sum(batch["untaken"].absent for batch in inline) == kinds.count("absent")
    left_out = sum(index + 1 for index, kind in enumerate(kinds) if kind == "left out")
    assert sum(batch["untaken"].left_out_count for batch in inline) == left_out


@pytest.mark.parametrize("threads", [0, 3])
def test_every_input_has_its_slot_and_what_fails_leaves_a_blank_one(threads: int) -> None:
    records = [record_of(index, kind) for index, kind in enumerate(["good", "bad", "good", "failed", "good"])]
    first, last = decode_batches(iter(records), PREPROCESS, 4, threads=threads)
    assert first.slots == [0, 2] and [row.sample_id for row in first.rows] == ["good-0", "good-2"]
    assert [row["sample_id"] for row in first.failed] == ["bad-1", "failed-3"]
    assert [row["reason"] for row in first.failed] == ["not_an_image", "missing"]
    assert first.bytes_in == len(JPEGS[0]) + len(b"no image") + len(JPEGS[2])
    assert not first.images_BHWC[[1, 3]].any() and first.images_BHWC[[0, 2]].any(axis=(1, 2, 3)).all()
    assert last.images_BHWC.shape == (4, 8, 8, 3) and last.slots == [0] and last.inputs == 1 and not last.images_BHWC[1:].any()
    row = last.rows[0]
    assert (row.label, row.meta, row.width, row.height, row.bytes_in) == (4, {"n": 4}, 9, 12, len(JPEGS[0]))
    assert np.array_equal(last.images_BHWC[0], decode_image(JPEGS[0], PREPROCESS).pixels_HWC)


@pytest.mark.parametrize("threads", [0, 3])
def test_an_absent_input_takes_the_slot_of_a_failed_one(threads: int) -> None:
    """So that the ids of the others are those of a plan by older rules, which quarantined it."""
    kinds = ["good", "absent", "left out", "good", "good", "left out"]
    failed = ["good", "failed", "good", "good"]
    first, last = decode_batches((record_of(index, kind) for index, kind in enumerate(kinds)), PREPROCESS, 3, threads=threads)
    assert (first.slots, first.inputs, last.slots, last.inputs) == ([0, 2], 3, [0], 1)
    as_failed = [batch.slots for batch in decode_batches((record_of(index, kind) for index, kind in enumerate(failed)), PREPROCESS, 3)]
    assert [first.slots, last.slots] == as_failed
    assert (first.untaken.absent, first.untaken.absent_example, first.untaken.left_out) == (1, "absent-1", {"hidden": 3})
    assert last.untaken.left_out == {"hidden": 6} and not first.failed and not first.images_BHWC[1].any()


def test_bytes_that_are_too_many_to_keep_are_not_quarantined() -> None:
    large = ImageRecord(sample_id="large", data=bytes(MAX_QUARANTINED_BYTES + 1))
    (batch,) = decode_batches(iter([large, record_of(1, "bad")]), PREPROCESS, 4)
    assert [row["data"] for row in batch.failed] == [None, b"no image"]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_what_the_records_raise_reaches_the_one_who_takes_the_batches(threads: int) -> None:
    def records() -> Iterator[Record]:
        yield from (good(index) for index in range(10))
        raise TransientStorageError("the store is away")

    taken = []
    with pytest.raises(TransientStorageError, match="the store is away"):
        for batch in decode_batches(records(), PREPROCESS, 4, threads=threads):
            taken.append(batch.inputs)
    assert taken == [4, 4], "whole batches before it are given, what is left of one is not"
    assert decoding_threads() == []


@pytest.mark.parametrize("threads", [0, 2])
def test_what_a_decoder_raises_by_mistake_reaches_the_taker(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(data: bytes, preprocess: Preprocess, rules: ImageRules) -> DecodedImage:
        raise MemoryError("no room")

    monkeypatch.setattr(decoded_rows, "decode_image", decode)
    with pytest.raises(MemoryError, match="no room"):
        list(decode_batches(iter([good(0)]), PREPROCESS, 4, threads=threads))
    assert decoding_threads() == []


class Blocked:
    """A decoder that waits until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.released = threading.Event()
        self.handed = 0
        monkeypatch.setattr(decoded_rows, "decode_image", self.decode)

    def decode(self, data: bytes, preprocess: Preprocess, rules: ImageRules) -> DecodedImage:
        assert self.released.wait(SECONDS)
        return decode_image(data, preprocess, rules)

    def records(self, count: int) -> Iterator[Record]:
        for index in range(count):
            self.handed += 1
            yield good(index)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_images_are_read_than_there_is_room_for(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = Blocked(monkeypatch)
    made = decode_batches(blocked.records(40), PREPROCESS, 8, threads=threads)
    inputs: list[int] = []
    taker = threading.Thread(target=lambda: inputs.extend(batch.inputs for batch in made))
    taker.start()
    try:
        wait_until(lambda: blocked.handed >= 2 * threads)
        time.sleep(0.05)  # a reader without a bound would go on
        assert blocked.handed == 2 * threads
    finally:
        blocked.released.set()
    taker.join(SECONDS)
    assert inputs == [8] * 5 and blocked.handed == 40


def test_three_batches_are_made_ahead_of_the_taker_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = Blocked(monkeypatch)
    blocked.released.set()
    made = decode_batches(blocked.records(100), PREPROCESS, 4, threads=2)
    next(made)
    wait_until(lambda: blocked.handed == 12)
    time.sleep(0.05)
    assert blocked.handed == 12, "the one in use, one ready, and one that waits to be"
    made.close()


@pytest.mark.parametrize("begun", [False, True])
def test_closing_early_stops_every_thread_while_the_reader_waits_for_room_in_the_queue(begun: bool) -> None:
    made = decode_batches((good(index) for index in range(10_000)), PREPROCESS, 2, threads=2)
    if begun:
        next(made)
        time.sleep(0.02)  # the queue is full by now
    made.close()
    assert decoding_threads() == []


def test_closing_early_stops_every_thread_while_the_reader_waits_for_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = Blocked(monkeypatch)
    blocked.released.set()
    made = decode_batches(blocked.records(10_000), PREPROCESS, 8, threads=1)
    next(made)
    blocked.released.clear()
    closer = threading.Thread(target=made.close)
    closer.start()
    time.sleep(0.02)
    seen = blocked.handed
    blocked.released.set()
    closer.join(SECONDS)
    assert not closer.is_alive() and decoding_threads() == []
    assert blocked.handed <= seen + 2, "nothing is read for a taker that is gone"


def test_the_source_is_closed_with_the_batches() -> None:
    closed = []

    def records() -> Iterator[Record]:
        try:
            yield from (good(index) for index in range(100))
        finally:
            closed.append(threading.current_thread().name)

    made = decode_batches(records(), PREPROCESS, 2, threads=2)
    next(made)
    made.close()
    del made
    assert len(closed) == 1


class Counted:
    """Counts how many threads decode at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lock = threading.Lock()
        self._now = self.most = 0
        monkeypatch.setattr(decoded_rows, "decode_image", self.decode)

    def decode(self, data: bytes, preprocess: Preprocess, rules: ImageRules) -> DecodedImage:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.002)
        with self._lock:
            self._now -= 1
        return decode_image(data, preprocess, rules)


@pytest.mark.parametrize(("threads", "slots"), [(0, 1), (3, 2), (2, 2)])
def test_shards_side_by_side_decode_on_no_more_cpus_than_they_share(threads: int, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, cpus = Counted(monkeypatch), threading.BoundedSemaphore(slots)
    inputs: list[int] = []

    def take() -> None:
        made = decode_batches((good(index) for index in range(20)), PREPROCESS, 8, threads=threads, cpus=cpus)
        inputs.extend(batch.inputs for batch in made)

    takers = [threading.Thread(target=take) for _ in range(3)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(SECONDS)
    assert sorted(inputs) == [4, 4, 4, 8, 8, 8, 8, 8, 8] and counted.most == slots
