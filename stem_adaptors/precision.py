"""The number format of training and measuring: one rule for `train`, its validation, `evaluate` and `predict`.

Embeddings, augmentation, final norm and head work in float32; the blocks between work in the precision.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from tokenshards.pipeline.errors import ConfigError

__all__ = ["in_float32", "allow_fast_formats", "autocast", "precision_name", "precision_of", "recorded_precision"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """Return the format for `fp32`, `bf16`, `fp16` or `auto`: bf16 where a GPU has it, else fp32. ConfigError for fp16 without CUDA."""
    if name == "auto":
        # torch also reports bf16 as supported where it is emulated, at a fraction of the speed of float32.
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    precision = _DTYPES[name]
    if precision is torch.float16 and device.type != "cuda":
        raise ConfigError(f"--precision is fp16 on {device.type}; expected fp32 or bf16 there")
    return precision


def recorded_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the format to measure a run in that was trained with `name`: the same one, or fp32 where this device lacks fp16."""
    return precision_of("fp32" if name == "fp16" and device.type != "cuda" else name, device)


def precision_name(precision: torch.dtype) -> str:
    """Return the option's word for a format."""
    return next(name for name, dtype in _DTYPES.items() if dtype is precision)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Return the context in which a forward pass runs."""
    return torch.autocast(device.type, dtype=precision, enabled=precision is not torch.float32)


def allow_fast_formats(model: nn.Module) -> None:
    """Let float32 products of this process use TF32 on a GPU, and bring the weights of 2D convolutions into channels-last memory.

    Embeddings are channels-last, so that a convolution of other weights would copy each batch. Tokenizers turn TF32 off for themselves
    (`pipeline.tokenizers.networks.exact_float32`).
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which autocast changes nothing."""
    # Autocast knows no meta device, and changes nothing there anyway.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
