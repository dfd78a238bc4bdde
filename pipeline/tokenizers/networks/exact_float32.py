"""Exact float32 products. By default a GPU rounds convolutions to TF32, with ten bits, and ids near a tie flip.

These switches belong to the process. They are set around the work of a tokenizer and restored after it, so that a training in the same
process keeps its own settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["exact_float32"]

_EXACT = ("none", "ieee")
"""Values of `fp32_precision` that mean float32 for matrix products: nothing was chosen, or float32 was chosen."""


@contextmanager
def exact_float32() -> Iterator[None]:
    """Let convolutions and matrix products keep all bits of float32 inside the block. On a CPU they always do."""
    cudnn: Any = torch.backends.cudnn
    convolutions: Any = getattr(cudnn, "conv", None)  # exists since torch 2.9, which refuses a mix of old and new switches
    before = cudnn.allow_tf32 if convolutions is None else convolutions.fp32_precision
    matrices = _matrices()
    try:
        if convolutions is None:
            cudnn.allow_tf32 = False
        else:
            convolutions.fp32_precision = "ieee"
        if matrices is not None:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if convolutions is None:
            cudnn.allow_tf32 = before
        else:
            convolutions.fp32_precision = before
        if matrices is not None:
            _restore(matrices)


def _matrices() -> tuple[str | None, str | None] | None:
    """Return the rounding of matrix products, by the old switch and by the new one; None where the products are exact."""
    new = getattr(torch.backends.cuda.matmul, "fp32_precision", None) if hasattr(torch.backends.cudnn, "conv") else None
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # the new switch was used and differs
        old = None
    return None if old == "highest" and (new is None or new in _EXACT) else (old, new)


def _restore(matrices: tuple[str | None, str | None]) -> None:
    old, new = matrices
    if old is not None:
        torch.set_float32_matmul_precision(old)
    elif new is not None:
        torch.backends.cuda.matmul.fp32_precision = new
