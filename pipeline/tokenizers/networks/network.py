"""A network on its device. It sees batches of few shapes, and no row of a batch changes the values of another row.

Shapes: B images, H height, W width.
"""

from __future__ import annotations

import os
import platform

import numpy as np
import torch
from torch import Tensor, nn

from tokenshards.pipeline.activity import step
from tokenshards.pipeline.devices import tokenizer_device as choose_device
from tokenshards.pipeline.errors import ConfigError, TokenizerError, shorten
from tokenshards.pipeline.tokenizers.base import SLOTS, Images
from tokenshards.pipeline.tokenizers.config import GPU_ROWS
from tokenshards.pipeline.tokenizers.networks.exact_float32 import exact_float32
from tokenshards.pipeline.words import counted

__all__ = [
    "SLOTS",
    "Network",
    "choose_device",
    "device_name",
    "from_pixels",
    "gpu_rows",
    "require_finite",
    "scaled",
    "to_device",
]

MAX_GPU_ROWS = 4096

NO_MEMORY = ("ALLOC_FAILED", "ALLOCATION_FAILED", "CUDA error: out of memory", "unable to find an engine to execute")
"""Messages of cuBLAS, cuDNN and the driver where their own memory is short; the last one says that no algorithm has enough room."""


def gpu_rows() -> int:
    """Return the rows that go through a network at once on a GPU. Raises ConfigError unless the variable is a power of 2."""
    text = os.environ.get(GPU_ROWS, "64")
    rows = int(text) if text.isdecimal() else 0
    if not SLOTS <= rows <= MAX_GPU_ROWS or rows.bit_count() != 1:
        raise ConfigError(f"{GPU_ROWS} is {shorten(text)}; expected a power of 2 from {SLOTS} to {MAX_GPU_ROWS}, which halves to 1")
    return rows


def device_name() -> str:
    """Return the kind and the name of the device."""
    device = choose_device()
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else f"cpu {platform.machine()}"


class Network:
    """Runs a module, which maps [B, ...] to [B, ...], on any number of rows: some rows at a time, the last ones padded with zeros.

    With dtype `bfloat16` matrix products run in bfloat16 under autocast; otherwise they run in float32, never TF32. Floating-point values
    always come out as float32. Where memory is too small for the rows, half as many are tried, and so on; the smaller number stays. A
    module that accepts one number of rows only is given exactly `fixed_rows`.
    """

    def __init__(self, module: nn.Module, *, dtype: str = "float32", fixed_rows: int | None = None) -> None:
        self.device = choose_device()
        self._module = module.to(self.device)
        self._half = dtype == "bfloat16"
        self._least, self._step = fixed_rows or 1, fixed_rows or SLOTS
        self._rows = self._told_rows = fixed_rows or (gpu_rows() if self.device.type == "cuda" else SLOTS)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the module's values of all rows, on the device. TokenizerError where a value is not a finite number."""
        found, finite = self.queue(values)
        require_finite(finite)
        return found

    @torch.inference_mode()
    def queue(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values and, for `require_finite`, whether all are finite numbers. Does not wait for a GPU.

        Raises TokenizerError where memory is too small for one row.
        """
        values, start = values.to(self.device), 0
        found: list[Tensor] = []
        while not found or start < len(values):
            with exact_float32():
                part = self._try(values[start : start + self._rows])
            if part is None:
                self._halve()
                continue
            found.append(part)
            start += len(part)
            step()  # a slow network shows that it works
        whole = torch.cat(found)
        return whole, torch.isfinite(whole).all()

    def take_notes(self) -> list[str]:
        """Return notes for the user since the last call."""
        before, self._told_rows = self._told_rows, self._rows
        if before == self._rows:
            return []
        return [
            f"memory of {device_name()} is short: {counted(self._rows, 'image')} at a time go through the network from here on, "
            f"{before} before; a few ids may differ for it"
        ]

    def _try(self, values: Tensor) -> Tensor | None:
        """Return the values of some rows; None where memory is too small for them."""
        try:
            return self._run(values)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            if not any(words in str(error) for words in NO_MEMORY):
                raise
            return None

    def _halve(self) -> None:
        if self._rows == self._least:
            raise TokenizerError(
                f"memory of {device_name()} is too small for {counted(self._rows, 'image')} at a time, the fewest that this network takes. "
                "Stop other programs there, or use a device with more memory, or a smaller network"
            )
        self._rows //= 2
        torch.cuda.empty_cache()  # free pieces of the larger batch would leave no room for the smaller one

    def _run(self, values: Tensor) -> Tensor:
        step = min(self._step, self._rows)
        missing = -len(values) % step if len(values) else step
        padding = values.new_zeros(missing, *values.shape[1:])
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half):
            result: Tensor = self._module(torch.cat([values, padding]))
        found = result[: len(values)]
        return found.float() if found.is_floating_point() else found


def require_finite(finite: Tensor) -> None:
    """Raise TokenizerError unless `finite`, a result of `Network.queue`, is true. Waits for a GPU."""
    if not bool(finite):
        raise TokenizerError(
            "the network gave values that are not finite numbers; expected numbers for any image. Are these the weights of this "
            "network, and is its dtype wide enough for them (--dtype float32)?"
        )


def to_device(images_BHWC: Images) -> Tensor:
    """Return a copy of uint8 images on the device."""
    return torch.from_numpy(np.array(images_BHWC)).to(choose_device())


def scaled(images_BHWC: Tensor, colour_range: tuple[float, float]) -> Tensor:
    """Return float32 [B, 3, H, W] of uint8 RGB images, with 0 to 255 mapped to the range as ToTensor() * (high - low) + low maps them."""
    low, high = colour_range
    return images_BHWC.permute(0, 3, 1, 2).float().div_(255).mul_(high - low).add_(low)


def from_pixels(pixels_BCHW: Tensor, colour_range: tuple[float, float]) -> Images:
    """Return uint8 RGB images [B, H, W, 3]; values outside the range are clipped."""
    low, high = colour_range
    images = pixels_BCHW.sub(low).div_(high - low).clamp_(0, 1).mul_(255).round_().byte()
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
