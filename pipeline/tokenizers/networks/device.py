"""What a tokenizer runs on here, without loading torch for one that has no networks."""

from __future__ import annotations

import platform

from tokenshards.pipeline.tokenizers.base import Tokenizer, WeightedTokenizer

__all__ = ["describe_device"]


def describe_device(tokenizer: Tokenizer) -> str:
    """Return the kind and the name of the device: the CPU, or for networks the GPU where there is one."""
    if isinstance(tokenizer, WeightedTokenizer):
        from tokenshards.pipeline.tokenizers.networks.network import device_name  # loads torch, as the tokenizer has done

        return device_name()
    return f"cpu {platform.machine()}"
