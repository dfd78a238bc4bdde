"""Copies of batches to a device. On a GPU they run on a stream of their own, beside the kernels of the consumer's stream."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from tokenshards.stem_adaptors.data.batch import Batch

__all__ = ["Copied", "DeviceCopies"]

Copied: TypeAlias = tuple[Batch, Any]
"""A batch on the device, and the CUDA event after its copy; None where the copy has ended."""


class DeviceCopies:
    """One thread begins copies, another takes the batches. Neither waits for the device."""

    def __init__(self, device: torch.device | None, cuda: Any = torch.cuda) -> None:
        """No device leaves batches where they are. `cuda`: the module that has the streams."""
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device) if device is not None and device.type == "cuda" else None

    def begin(self, batch: Batch) -> Copied:
        """Begin the copy of a batch."""
        if self._device is None or self._stream is None:
            return batch if self._device is None else batch.to(self._device), None
        with self._cuda.device(self._device), self._cuda.stream(self._stream):
            moved = batch.pin_memory().to(self._device, non_blocking=True)
            return moved, self._stream.record_event()

    def take(self, copied: Copied) -> Batch:
        """Return the batch for use on the current stream, whose further work waits for the copy."""
        batch, event = copied
        if event is not None:
            stream = self._cuda.current_stream(self._device)
            stream.wait_event(event)
            batch.record_stream(stream)
        return batch
