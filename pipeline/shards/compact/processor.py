"""What decodes on this machine: its processor, as numba's compiler will use it, or the device that the user names."""

from __future__ import annotations

import os

__all__ = ["DECODE_DEVICE", "PLAIN_KERNELS", "has_avx2"]

DECODE_DEVICE = "TOKENSHARDS_DECODE_DEVICE"
"""An environment variable: with `cuda` torch decodes whole batches on a GPU."""

PLAIN_KERNELS = "TOKENSHARDS_PLAIN_KERNELS"
"""An environment variable: with any value the kernels are those for a processor of any kind."""


def has_avx2() -> bool:
    """Whether the kernels may use AVX2. Where the user has chosen a processor for numba, they do not."""
    import llvmlite.binding
    import numba

    if os.environ.get(PLAIN_KERNELS) or numba.config.CPU_NAME or numba.config.CPU_FEATURES is not None:
        return False
    return bool(llvmlite.binding.get_host_cpu_features().get("avx2"))
