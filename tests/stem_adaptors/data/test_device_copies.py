"""The order of what a copy to a GPU does, told by a stand-in for `torch.cuda` and a batch that writes down its calls.

tests/gpu has the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.device_copies import DeviceCopies

GPU = torch.device("cuda", 1)


class Told:
    """A stream, an event, a batch or `torch.cuda`; all write to one log which stream was current."""

    def __init__(self, log: list[str], name: str = "") -> None:
        self.log, self.name, self.current = log, name, "compute"

    def Stream(self, device: torch.device) -> Told:
        return Told(self.log, f"side of {device}")

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: Told) -> Iterator[None]:
        self.log.append(f"enter {stream.name}")
        yield
        self.log.append("leave")

    def current_stream(self, device: torch.device) -> Told:
        return Told(self.log, f"compute of {device}")

    def record_event(self) -> Told:
        self.log.append("record event")
        return Told(self.log, "event")

    def wait_event(self, event: Told) -> None:
        self.log.append(f"{self.name} waits for {event.name}")

    def pin_memory(self) -> Told:
        self.log.append("pin")
        return self

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Told:
        self.log.append(f"copy to {device} non_blocking={non_blocking}")
        return self

    def record_stream(self, stream: Told) -> None:
        self.log.append(f"memory stays for {stream.name}")


def test_a_copy_runs_on_its_own_stream_and_the_consumer_s_stream_waits_for_it() -> None:
    log: list[str] = []
    copies = DeviceCopies(GPU, Told(log))
    batch: Any = Told(log)
    copied = copies.begin(batch)
    assert log == ["enter side of cuda:1", "pin", "copy to cuda:1 non_blocking=True", "record event", "leave"]
    log.clear()
    assert copies.take(copied) is batch
    assert log == ["compute of cuda:1 waits for event", "memory stays for compute of cuda:1"]


def test_without_a_gpu_nothing_is_copied() -> None:
    ids, row = torch.zeros(2, 4, 1, dtype=torch.uint16), torch.zeros(2, dtype=torch.int64)
    batch = Batch(ids, row, row.float(), row, row, 0, 0)
    for device in (None, torch.device("cpu")):
        copies = DeviceCopies(device)
        taken = copies.take(copies.begin(batch))
        assert taken.ids_BLQ is ids and taken.labels_B is row


def test_every_tensor_of_a_batch_is_kept_for_a_stream(monkeypatch: Any) -> None:
    kept: list[int] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: kept.append(id(self)))
    tensors = [torch.zeros(2, 4, 1), *(torch.zeros(2) for _ in range(6))]
    Batch(*tensors[:5], 0, 0, *tensors[5:]).record_stream(None)
    assert kept == [id(tensor) for tensor in tensors]
