"""Choice of the device that computes, and its widest float type. Tokenizers and training share this module; needs torch."""

from __future__ import annotations

import torch

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.words import counted

__all__ = ["choose_device", "tokenizer_device", "wide_float"]


def choose_device(name: str = "auto", local_rank: int = 0, *, option: str = "--device") -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:1`. Raises ConfigError if this machine or torch lacks the device.

    `option`: where the user gave the name, for messages.

    Apple's GPU (`mps`) is refused, and `auto` takes the CPU there: it has no float64 and few operations on uint16, and nobody has compared
    its results with those of the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{option} is {name!r}; expected auto, cpu, cuda or cuda:NUMBER") from None
    if device.type == "mps":
        raise ConfigError(f"{option} is 'mps'; tokenshards does not run on Apple's GPU: its results are untested there. Give {option} cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available()}
    if not available.get(device.type, False):
        have = ", ".join(kind for kind, there in available.items() if there)
        raise ConfigError(f"{option} is {name!r}, which this machine or this build of torch does not have; available: {have}")
    if device.type == "cuda":
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"{option} is cuda:{index}; this machine has {counted(torch.cuda.device_count(), 'GPU')}. Start fewer processes on it"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def tokenizer_device() -> torch.device:
    """Return the CUDA device of this thread if there is one, else the CPU. Never Apple's GPU: nobody has compared its ids with the CPU's.

    CUDA_VISIBLE_DEVICES pins a worker to a device, or torch.cuda.set_device in the thread that builds the tokenizer.
    """
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def wide_float(device: torch.device) -> torch.dtype:
    """Return float64 on CPU and CUDA, float32 on other devices: Apple's GPUs have no float64."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32
