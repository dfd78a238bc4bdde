"""Which device computes, and the numbers it has. Below tokenizers and training, which choose alike; needs torch."""

from __future__ import annotations

import torch

from tokenshards.pipeline.errors import ConfigError

__all__ = ["choose_device", "tokenizer_device", "wide_float"]


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; raises ConfigError where this machine or this torch has none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device is {name!r}; expected auto, cpu, cuda, cuda:NUMBER or mps") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        have = ", ".join(kind for kind, there in available.items() if there)
        raise ConfigError(f"--device is {name!r}, which this machine or this build of torch does not have; available: {have}")
    if device.type == "cuda":
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ConfigError(f"--device is cuda:{index}; this machine has {torch.cuda.device_count()} GPUs. Start fewer processes on it")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def tokenizer_device() -> torch.device:
    """Return the CUDA device of this thread where there is one, else the CPU: never Apple's GPU, whose ids nobody has compared.

    A worker is pinned to a device by CUDA_VISIBLE_DEVICES, or by torch.cuda.set_device in the thread that builds the tokenizer.
    """
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def wide_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on devices that are not known to have it: Apple's GPUs have none."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32
