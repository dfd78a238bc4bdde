"""Products of float32 numbers as float32: a GPU rounds them to TF32, ten bits, in convolutions by default, and ids near a tie flip.

These switches belong to the process. They are set around the work of a tokenizer and put back after it, so that a training beside it keeps
its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["exact_float32"]

_EXACT = ("none", "ieee")
"""Of `fp32_precision`: nothing was chosen, which for products of matrices means float32, or float32 was."""


@contextmanager
def exact_float32() -> Iterator[None]:
    """Let convolutions and products of matrices keep all bits of float32 inside the block; on a CPU they do so anyway."""
    cudnn: Any = torch.backends.cudnn
    convolutions: Any = getattr(cudnn, "conv", None)  # since torch 2.9, which refuses a mix of old and new switches
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
    """Return how products of matrices are rounded, by the old switch and by the new one; None where they are exact."""
    new = getattr(torch.backends.cuda.matmul, "fp32_precision", None) if hasattr(torch.backends.cudnn, "conv") else None
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # the new switch was used, and says something else
        old = None
    return None if old == "highest" and (new is None or new in _EXACT) else (old, new)


def _restore(matrices: tuple[str | None, str | None]) -> None:
    old, new = matrices
    if old is not None:
        torch.set_float32_matmul_precision(old)
    elif new is not None:
        torch.backends.cuda.matmul.fp32_precision = new
