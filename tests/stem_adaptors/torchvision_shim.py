"""Lets torchvision's wheel, which timm imports, load beside a CPU-only torch: it registers fakes for two operators of its own library."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def allow_torchvision() -> Any:
    """Register the two operator schemas where torchvision cannot; the result must be kept, which the cache does."""
    import torch

    try:
        import torchvision  # noqa: F401
    except ImportError:
        return None
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None
