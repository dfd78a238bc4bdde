"""Groups of parameters for the optimiser: which ones decay, and how fast each layer learns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.models.classifier import VisionTransformer
from tokenshards.stem_adaptors.models.timm_backbones import timm_layers

__all__ = ["layers_of", "parameter_groups", "spared_names"]


def parameter_groups(model: nn.Module, weight_decay: float, spared: Collection[str] = (), layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return the trained parameters in groups with `weight_decay` and `lr_scale`.

    Biases, norms, positions, tokens, tables and the parameters named in `spared` do not decay. With a `layer_decay` d below 1, the
    parameters of layer i of n learn at d^(n - i) of the rate: the head at the whole rate, the first layer at the least (BEiT, Bao et al.
    2022). Without it there are two groups. Raises ConfigError for a layer decay of a model whose layers are not known.
    """
    layers = layers_of(model) if layer_decay != 1.0 else {}
    last = max(layers.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim <= 1 or name.endswith(("_embed", "_token")) or name.startswith("embedding.") or name in spared
            groups.setdefault((layers.get(name, last), free), []).append(parameter)
    if not layers:
        # An optimiser's state goes by the order of groups. Both are always there, also in a model where one is empty.
        groups = {(last, free): groups.get((last, free), []) for free in (False, True)}
    return [
        {"params": parameters, "weight_decay": 0.0 if free else weight_decay, "lr_scale": layer_decay ** (last - layer)}
        for (layer, free), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def layers_of(model: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter: 0 for embeddings of ids, then the stem, the blocks in order, and last norm and head.

    Our ViTs and timm's models know their layers. Raises ConfigError for other models.
    """
    backbone: Any = getattr(model, "backbone", model)
    if isinstance(backbone, VisionTransformer):
        inner = {name: _vit_layer(name, len(backbone.blocks)) for name, _ in backbone.named_parameters()}
    elif hasattr(backbone, "group_matcher"):
        inner = timm_layers(backbone)
    else:
        raise ConfigError(
            f"layer_decay needs a model that names its layers; {type(backbone).__name__} has no group_matcher, as timm's models have. "
            "Set layer_decay to 1"
        )
    if backbone is model:
        return {name: layer + 1 for name, layer in inner.items()}
    named = {f"backbone.{name}": layer + 1 for name, layer in inner.items()}
    last = max(named.values(), default=0)
    return {name: named.get(name, 0 if name.startswith("embedding.") else last) for name, _ in model.named_parameters()}


def _vit_layer(name: str, depth: int) -> int:
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) + 1
    return 0 if parts[0] in ("patch_embed", "cls_token", "pos_embed") else depth + 1


def spared_names(model: nn.Module) -> set[str]:
    """Return the parameters that timm's model excludes from weight decay, beyond those that their own names exclude."""
    names: Any = getattr(getattr(model, "backbone", model), "no_weight_decay", set)
    return {f"backbone.{name}" for name in names()}
