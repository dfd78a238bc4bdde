"""A network on the device it runs on: batches of one shape go in, whatever else is in a batch moves no value that comes out.

Shapes: B images, H height, W width, S slots of a batch.
"""

from __future__ import annotations

import platform

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import TokenizerError
from pipeline.tokenizers.base import SLOTS, Images

__all__ = ["SLOTS", "Network", "choose_device", "device_name", "from_pixels", "to_pixels"]


def choose_device() -> torch.device:
    """Return the CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """Return the kind and the name of that device."""
    device = choose_device()
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else f"cpu {platform.machine()}"


class Network:
    """Runs a module, which maps [S, ...] to [S, ...], on any number of rows; the last batch is padded with zeros.

    With dtype `bfloat16` matrix products run in it under autocast; floating-point values that come out are float32 in any case.
    """

    def __init__(self, module: nn.Module, *, dtype: str = "float32", slots: int = SLOTS) -> None:
        self._device = choose_device()
        self._module = module.to(self._device)
        self._half = dtype == "bfloat16"
        self._slots = slots

    @torch.inference_mode()
    def __call__(self, values: Tensor) -> Tensor:
        """Return the module's values of all rows, on the device; raises TokenizerError where one is not a finite number."""
        found = torch.cat([self._run(part) for part in torch.split(values.to(self._device), self._slots)])
        if not bool(torch.isfinite(found).all()):
            raise TokenizerError(
                "the network gave values that are no finite numbers; expected numbers for any picture. Are these the weights of this "
                "network, and is its dtype wide enough for them (--dtype float32)?"
            )
        return found

    def _run(self, values: Tensor) -> Tensor:
        padding = values.new_zeros(self._slots - len(values), *values.shape[1:])
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half):
            result: Tensor = self._module(torch.cat([values, padding]))
        found = result[: len(values)]
        return found.float() if found.is_floating_point() else found


def to_pixels(images_BHWC: Images, colour_range: tuple[float, float]) -> Tensor:
    """Return float32 [B, 3, H, W] of uint8 RGB images, 0 to 255 mapped to the range as ToTensor() * (high - low) + low does it."""
    low, high = colour_range
    images = torch.from_numpy(np.array(images_BHWC)).to(choose_device())
    return images.permute(0, 3, 1, 2).float().div_(255).mul_(high - low).add_(low)


def from_pixels(pixels_BCHW: Tensor, colour_range: tuple[float, float]) -> Images:
    """Return uint8 RGB images [B, H, W, 3]; what lies outside the range is clipped."""
    low, high = colour_range
    images = pixels_BCHW.sub(low).div_(high - low).clamp_(0, 1).mul_(255).round_().byte()
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
