"""Models and stems as users write them: what tests name with `python:`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def make(channels: int, grid: tuple[int, ...], classes: int, **options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, options.get("width", 8), 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(classes))


class WithHead(nn.Module):
    """A model whose last layer has the name that a linear probe looks for."""

    def __init__(self, channels: int, grid: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(channels * grid[0] * grid[1], 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def make_stem(channels: int, grid: tuple[int, ...], width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, width, 4, 4), nn.Flatten(2), _Transposed())


class _Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def pixels_alone(channels: int, grid: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())


def wrong_count(channels: int, grid: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes + 1))


def no_module(channels: int, grid: tuple[int, ...], classes: int) -> Any:
    return torch.zeros


NUMBER = 7


def registered_with_timm(channels: int, grid: tuple[int, ...], classes: int) -> nn.Module:
    """A model that exists in timm's registry only once this has run."""
    import timm
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model("own_vit"):

        def own_vit(pretrained: bool = False, **options: Any) -> nn.Module:
            options = {name: value for name, value in options.items() if name in ("img_size", "in_chans", "num_classes")}
            return VisionTransformer(patch_size=2, embed_dim=16, depth=1, num_heads=2, **options)

        register_model(own_vit)
    model: nn.Module = timm.create_model("own_vit", img_size=grid, in_chans=channels, num_classes=classes)
    return model
