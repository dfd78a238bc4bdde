"""A perceptual loss: compares images by the features of a trained network, and so keeps texture that squared errors alone would blur.

As in LPIPS (Zhang et al. 2018, arXiv 1801.03924, section 3) without its learned weights: the features of each stage are scaled to length
1 at every place, and their squared differences are averaged over places and stages.

Shapes: B images, H and W pixels, F channels of a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshards.pipeline.errors import ConfigError, TokenizerError, shorten
from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.tokenizers.networks.checkpoint_file import read_state_dict
from tokenshards.pipeline.tokenizers.networks.network import choose_device

__all__ = ["PerceptualLoss", "open_perceptual"]


class PerceptualLoss:
    """Compares pixels [B, 3, H, W] from -1 to 1 by the features of `stages`, after the scaling that the network was trained with."""

    def __init__(self, stages: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        device = choose_device()
        self._stages = stages.eval().requires_grad_(False).to(device)
        self._mean_C11, self._std_C11 = (torch.tensor(values, device=device).reshape(3, 1, 1) for values in (mean, std))

    def __call__(self, drawn_BCHW: Tensor, true_BCHW: Tensor) -> Tensor:
        """Return the loss, 0 for equal images. Gradients reach `drawn_BCHW` alone."""
        with torch.no_grad():
            expected = self._features(true_BCHW)
        pairs = zip(self._features(drawn_BCHW), expected, strict=True)
        losses = [(found_BFhw - wanted_BFhw).square().sum(dim=1).mean() for found_BFhw, wanted_BFhw in pairs]
        return torch.stack(losses).mean()

    def _features(self, pixels_BCHW: Tensor) -> list[Tensor]:
        found: list[Tensor] = self._stages((pixels_BCHW * 0.5 + 0.5 - self._mean_C11) / self._std_C11)
        return [functional.normalize(stage_BFhw, dim=1) for stage_BFhw in found]


def open_perceptual(model: str, weights: str, storage_options: Mapping[str, Any] | None = None) -> PerceptualLoss:
    """Return the loss of a timm model with the weights at a path or URL.

    Raises ConfigError where timm is not installed or has no such model, TokenizerError where the weights do not fit its feature stages.
    """
    with optional_import("--perceptual needs timm", extra="timm"):
        import timm
    if not timm.is_model(model):
        close = ", ".join(timm.list_models(f"*{model[:5]}*")[:4]) or "none like it"
        raise ConfigError(f"--perceptual is {shorten(model)}, which timm {timm.__version__} does not have; it has {close}")
    try:
        stages: Any = timm.create_model(model, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--perceptual {model}: it gives no stages of features ({error}); take a convolutional one, such as vgg11"
        ) from None
    found, wanted = read_state_dict(weights, storage_options), stages.state_dict()
    missing = [key for key, value in wanted.items() if _key(key, found) not in found or found[_key(key, found)].shape != value.shape]
    if missing:
        raise TokenizerError(
            f"{weights}: {missing[0]} of {model} is missing or has another shape, and so for {len(missing) - 1} more; expected the "
            f"weights of {model}, under timm's names"
        )
    stages.load_state_dict({key: found[_key(key, found)].float() for key in wanted})
    config = stages.pretrained_cfg if hasattr(stages, "pretrained_cfg") else {}
    return PerceptualLoss(stages, tuple(config.get("mean", (0.485, 0.456, 0.406))), tuple(config.get("std", (0.229, 0.224, 0.225))))


def _key(key: str, state: Mapping[str, Tensor]) -> str:
    """Return the name in a checkpoint of a key of timm's feature stages, which flatten `features.0` to `features_0`."""
    return key if key in state else key.replace("features_", "features.", 1)
