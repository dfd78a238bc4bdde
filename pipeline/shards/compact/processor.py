"""What the processor of this machine can do, as numba's compiler will use it. Imports numba."""

from __future__ import annotations

import os

import llvmlite.binding
import numba

from tokenshards.pipeline.shards.compact.lockstep import PLAIN_KERNELS

__all__ = ["has_avx2"]


def has_avx2() -> bool:
    """Whether the loops may use AVX2. Where the user has chosen a processor for numba, they do not."""
    if os.environ.get(PLAIN_KERNELS) or numba.config.CPU_NAME or numba.config.CPU_FEATURES is not None:
        return False
    return bool(llvmlite.binding.get_host_cpu_features().get("avx2"))
