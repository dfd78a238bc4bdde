"""`begin` of a tokenizer with networks on a GPU. Images and ids travel through page-locked memory; only `finish` waits.

Shapes: B images, H height, W width, C = 3 channels, L sites, Q ids of a site.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.tokenizers.base import Images, check_images
from tokenshards.pipeline.tokenizers.networks.network import choose_device, require_finite

__all__ = ["Begin", "Overlap", "QueuedTokenizer", "offer_overlap"]

Begin: TypeAlias = Callable[[Images], Callable[[], tuple[TokenBatch, float]]]


class QueuedTokenizer(Protocol):
    """A tokenizer that can leave its ids on the device."""

    begin: Begin
    """Exists only where `offer_overlap` added it, which makes the tokenizer an OverlappedTokenizer."""

    @property
    def spec(self) -> TokenizerSpec:
        """Everything that decides what an id means."""

    def queue(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids [B, L, Q] of uint8 images on the device, and whether all values were finite. Does not wait for the device."""


def offer_overlap(tokenizer: QueuedTokenizer) -> None:
    """Give a tokenizer `begin` on a GPU. On a CPU there is no waiting time to use."""
    device = choose_device()
    if device.type == "cuda":
        tokenizer.begin = Overlap(tokenizer, device).begin


class Overlap:
    """Begins batches on a device, in the order of the calls."""

    def __init__(self, tokenizer: QueuedTokenizer, device: torch.device) -> None:
        self._tokenizer, self._device = tokenizer, device

    def begin(self, images_BHWC: Images) -> Callable[[], tuple[TokenBatch, float]]:
        """Queue a batch. The function returned waits for its ids, which equal those of `encode`, and for the seconds of the device."""
        spec = self._tokenizer.spec
        check_images(images_BHWC, spec)
        # torch reuses this memory once the copy is done, so there are as many buffers as batches under way: two for each shard.
        buffer_BHWC = torch.empty(images_BHWC.shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        buffer_BHWC.numpy()[:] = images_BHWC
        clock = _Clock(self._device)
        queued = self._tokenizer.queue(buffer_BHWC.to(self._device, non_blocking=True))
        ids_BLQ, finite = (value.to("cpu", non_blocking=True) for value in queued)
        clock.stop()

        def finish() -> tuple[TokenBatch, float]:
            seconds = clock.wait()
            require_finite(finite)
            return TokenBatch(ids_BLQ.numpy().astype(spec.id_dtype)), seconds

        return finish


class _Clock:
    """Measures the seconds that a device works between two places of its queue."""

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []  # type: ignore[no-untyped-call]
        self._started, self._seconds = time.perf_counter(), 0.0
        if self._events:
            self._events[0].record()

    def stop(self) -> None:
        if self._events:
            self._events[1].record()
        else:
            self._seconds = time.perf_counter() - self._started

    def wait(self) -> float:
        if not self._events:
            return self._seconds
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1e3
