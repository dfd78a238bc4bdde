"""A tokenizer on a device has the next batch before it is done with the one before; the shards are the same."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets import content, convert, quarantine_of, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline import activity
from tokenshards.pipeline.job.context import open_context
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary
from tokenshards.pipeline.job.shard_job import tokenize_shard
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.runners.stage_usage import RunUsage
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Images, Tokenizer

DEVICE_SECONDS = 0.25


class Device:
    """The tokenizer that it is given, whose ids are there when they are asked for; counts the batches that are under way."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._beginning = threading.Lock()
        self._unfinished = 0
        self.most_unfinished = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    spec = property(lambda self: self._tokenizer.spec)

    def encode(self, images_BHWC: Images) -> TokenBatch:
        raise AssertionError("a tokenizer that can begin is never made to wait")

    def decode(self, tokens: TokenBatch) -> Images:
        return self._tokenizer.decode(tokens)

    def codebook(self) -> dict[str, Any]:
        return self._tokenizer.codebook()

    @classmethod
    def from_saved(cls, spec: Any, tables: Any) -> Any:
        raise NotImplementedError

    def begin(self, images_BHWC: Images) -> Callable[[], tuple[TokenBatch, float]]:
        assert self._beginning.acquire(blocking=False), "two threads begin at once"
        self._unfinished += 1
        self.most_unfinished = max(self.most_unfinished, self._unfinished)
        before = images_BHWC.copy()
        self._beginning.release()

        def finish() -> tuple[TokenBatch, float]:
            assert np.array_equal(images_BHWC, before), "pixels changed while the device read them"
            with self._beginning:
                self._unfinished -= 1
            return self._tokenizer.encode(images_BHWC), DEVICE_SECONDS

        return finish


class DeviceRunner:
    """Runs shards in this process on a Device, `threads` side by side."""

    def __init__(self, threads: int, decode_threads: int, device: type[Device] = Device) -> None:
        self._threads, self._decode_threads, self._make = threads, decode_threads, device
        self.encode_seconds: dict[int, float] = {}
        self.batches: dict[int, int] = {}

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        context = open_context(job, decode_threads=self._decode_threads)
        self.device = self._make(context.tokenizer)
        context = dataclasses.replace(context, tokenizer=self.device)
        waiting, lock = list(shards), threading.Lock()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while True:
                    with lock:
                        if not waiting:
                            return
                        shard = waiting.pop()
                        listener.started(shard)
                    reports: list[int] = []
                    commit = tokenize_shard(context, shard, on_progress=lambda done, reports=reports: reports.append(done.inputs))
                    reports = [inputs for inputs in reports if inputs]  # without the signs of life before each put
                    assert sum(reports) == commit.inputs_seen
                    with lock:
                        self.encode_seconds[shard] = commit.seconds["encode"]
                        self.batches[shard] = len(reports)
                        listener.committed(shard, ShardSummary.of(commit))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(self._threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        listener.measured(RunUsage())
        return {}


class Watched(Device):
    """Looks at what the supervisor would see while the device works on the first batch."""

    seen: tuple[list[str], dict[str, float]] | None = None

    def begin(self, images_BHWC: Images) -> Callable[[], tuple[TokenBatch, float]]:
        finish = super().begin(images_BHWC)

        def watch() -> tuple[TokenBatch, float]:
            self.seen = self.seen or ([found.stage for found in activity.activities()], activity.slowest())
            return finish()

        return watch


def test_a_batch_that_is_only_queued_does_not_count_as_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue takes a batch in no time. If this were measured, a slow device would soon count as hanging."""
    write_images(tmp_path / "src", 12)
    convert(tmp_path / "src", tmp_path / "plain", runner=InlineRunner())
    monkeypatch.setattr(activity, "_slowest", {})
    runner = DeviceRunner(1, 0, Watched)
    convert(tmp_path / "src", tmp_path / "out", batch_rows=4, tokenizer=str(tmp_path / "plain" / "tokenizer"), runner=runner)
    assert isinstance(runner.device, Watched) and runner.device.seen is not None
    stages, slowest = runner.device.seen
    assert stages == [activity.ENCODE] and activity.QUEUE in slowest and activity.ENCODE not in slowest
    assert activity.slowest()[activity.ENCODE] >= DEVICE_SECONDS, "the seconds of the device count, not the rest of them that we waited"


@pytest.mark.parametrize(("threads", "decode_threads"), [(1, 0), (1, 2), (3, 2)])
def test_the_shards_are_those_of_a_tokenizer_that_waits(tmp_path: Path, threads: int, decode_threads: int) -> None:
    write_images(tmp_path / "src", 90, bad=5)
    convert(tmp_path / "src", tmp_path / "plain", shard_rows=40, batch_rows=8)
    runner = DeviceRunner(threads, decode_threads)
    convert(tmp_path / "src", tmp_path / "out", shard_rows=40, batch_rows=8, tokenizer=str(tmp_path / "plain" / "tokenizer"), runner=runner)
    assert content(tmp_path / "out") == content(tmp_path / "plain")
    assert quarantine_of(tmp_path / "out") == quarantine_of(tmp_path / "plain")
    assert verify_dataset(Store(str(tmp_path / "out"))).ok
    assert 2 <= runner.device.most_unfinished <= 2 * threads
    for shard, batches in runner.batches.items():  # what the device says counts, however long its ids lay about
        assert runner.encode_seconds[shard] == pytest.approx(batches * DEVICE_SECONDS)
