"""Models and stems that users write, named `python:package.module:callable` or offered by entry points of installed packages.

    def make(channels, grid, classes):           # a model
        return nn.Sequential(nn.Conv2d(channels, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))

    def make_stem(channels, grid, width):        # a stem of our ViTs
        ...                                      # a module from [B, channels, H, W] to [B, tokens, width]

Shapes: B samples, D channels of an embedding, H x W grid, T frames, L sites, N tokens, E width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.named_code import PREFIX, call_named, load_named, names_code, offered, require_allowed
from tokenshards.stem_adaptors.config import STEMS, ModelConfig
from tokenshards.stem_adaptors.models.stems import Stem

__all__ = ["MODELS", "build_own_model", "build_own_stem", "is_own_model", "is_own_stem", "own_names", "require_own_code_allowed"]

MODELS = "tokenshards.models"
"""Group of entry points for models: `name = "package.module:callable"`."""
_PROBE = 2
"""Samples of zeros that a new module is run on."""


def own_names(group: str) -> list[str]:
    """Return the names that installed packages offer, sorted."""
    return sorted(offered(group))


def require_own_code_allowed(config: ModelConfig) -> None:
    """Raise ConfigError where a file's config names code of a user that $TOKENSHARDS_ALLOW_PYTHON does not name."""
    for name in (config.name, config.stem):
        if name.startswith(PREFIX):
            require_allowed(name.removeprefix(PREFIX), "this run", ConfigError)


def build_own_model(config: ModelConfig, channels: int, grid: Sequence[int], classes: int) -> nn.Module:
    """Return the module that the callable of `config.name` makes: embeddings [B, D, *grid], or [B, L, D] without a grid, to logits [B, C].

    The callable gets (channels, grid, classes), and by name those of drop_path, depth, width and heads that are set. Raises ConfigError
    where it cannot be imported or fails, or where its module gives something else for zeros.
    """
    if config.stem != "auto" or config.stem_patch or config.embed_norm:
        raise ConfigError(
            f"--model {config.name} has a stem of its own; model.stem, model.stem_patch and model.embed_norm are for our ViTs: leave "
            "them out"
        )
    given = {name: getattr(config, name) for name in ("depth", "width", "heads") if getattr(config, name) is not None}
    if config.drop_path:
        given["drop_path"] = config.drop_path
    where = f"--model {config.name}"
    module = _made(where, load_named(config.name, MODELS, "--model"), (channels, tuple(grid), classes), given)
    found = _output(where, module, channels, grid)
    if tuple(found.shape) != (_PROBE, classes):
        raise ConfigError(f"{where}: its module gives {list(found.shape)} for {_PROBE} samples; expected logits [{_PROBE}, {classes}]")
    return module


def build_own_stem(config: ModelConfig, channels: int, grid: Sequence[int], width: int) -> Stem:
    """Return a stem around the module that the callable `config.stem` makes of (channels, grid, width).

    Raises what `build_own_model` raises.
    """
    where = f"model.stem={config.stem}"
    if config.embed_norm:
        raise ConfigError(f"{where}: model.embed_norm is for our stems; leave it out")
    module = _made(where, load_named(config.stem, STEMS, "model.stem"), (channels, tuple(grid), width), {})
    found = _output(where, module, channels, grid)
    if found.ndim != 3 or len(found) != _PROBE or found.shape[2] != width:
        raise ConfigError(f"{where}: its module gives {list(found.shape)} for {_PROBE} samples; expected [{_PROBE}, tokens, {width}]")
    return _OwnStem(module, int(found.shape[1]), where)


class _OwnStem(Stem):
    def __init__(self, module: nn.Module, tokens: int, where: str) -> None:
        super().__init__()
        self.own = module
        self.grid = (tokens,)
        self._where = where

    def forward(self, x: Tensor) -> Tensor:
        tokens_BNE: Tensor = self.own(x)
        return tokens_BNE

    def token_mask(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        find = getattr(self.own, "token_mask", None)
        if find is None:
            raise ConfigError(f"{self._where}: samples vary in size; expected a method `token_mask(mask)` that says which tokens are real")
        real_BN: Tensor = find(mask)
        return real_BN


def _made(where: str, make: Any, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> nn.Module:
    module = call_named(where, lambda: make(*arguments, **given))
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{where}: it returns {shorten(module)}, a {type(module).__name__}; expected a torch.nn.Module")
    return module


@torch.no_grad()
def _output(where: str, module: nn.Module, channels: int, grid: Sequence[int]) -> Tensor:
    """Return what the module gives for zeros, in evaluation mode."""
    shape = (_PROBE, *grid, channels) if len(grid) == 1 else (_PROBE, channels, *grid)
    training = module.training
    try:
        found = call_named(f"{where}: its module on {list(shape)}", lambda: module.eval()(torch.zeros(shape)))
    finally:
        module.train(training)
    if not isinstance(found, Tensor):
        raise ConfigError(f"{where}: its module gives {shorten(found)}, a {type(found).__name__}; expected a tensor")
    return found


def is_own_model(name: str) -> bool:
    """Return whether a model's name stands for code of a user or of an installed package."""
    return names_code(name, MODELS)


def is_own_stem(name: str) -> bool:
    """Return whether a stem's name stands for code of a user or of an installed package."""
    return names_code(name, STEMS)
