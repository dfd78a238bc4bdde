"""The device that a tokenizer runs on. A tokenizer without networks does not load torch."""

from __future__ import annotations

import platform

from tokenshards.pipeline.tokenizers.base import Tokenizer, WeightedTokenizer

__all__ = ["describe_device"]


def describe_device(tokenizer: Tokenizer) -> str:
    """Return kind and name of the device: the CPU, or the GPU for networks where there is one."""
    if isinstance(tokenizer, WeightedTokenizer):
        from tokenshards.pipeline.tokenizers.networks.network import device_name  # loads torch, which the tokenizer has loaded already

        return device_name()
    return f"cpu {platform.machine()}"
