"""Any timm backbone on token embeddings. An adaptor replaces the first convolution, so that stage 1 gets a map of its native size.

Shapes: B samples, D embedding channels, H x W token grid, C channels of the backbone's first convolution.

This module knows no single models. timm names the first convolution; stage 1 is the first module defined after it that has weights and
parts. Running the model up to stage 1 shows what stage 1 gets from an image. The adaptor scales the token grid to that size by a power of
two from 1/8 to 4, or to the nearest such size. Later strides within the stem are removed, because the adaptor does their work. 28 x 28
tokens become 14 x 14 in a ViT, 56 x 56 in ResNet, ConvNeXt and Swin, 112 x 112 in EfficientNet, as 224 pixels do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.stem_adaptors.models.drop_path import DropPath

__all__ = ["build_timm_backbone", "timm_layers"]

SCALES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)


def build_timm_backbone(
    name: str, in_channels: int, grid: tuple[int, int], classes: int, *, drop_path: float = 0.0, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return the untrained timm model `name` that takes embeddings [B, D, H, W] over `grid` and returns logits [B, classes].

    `stem_sites` of the result is the size of the map that stage 1 gets.
    `options` go to `timm.create_model` (depths, widths). Raises ConfigError where timm is missing, the name is unknown, or the model's stem
    cannot be replaced.
    """
    timm = _load_timm()
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(
            f"timm has no model {name!r}; expected a name of `timm.list_models()` of version {timm.__version__}. Name "
            "a model of your own python:package.module:callable, so that `evaluate` finds it again"
        )
    settings = {"num_classes": classes, **({"drop_path_rate": drop_path} if drop_path else {}), **(options or {})}
    try:
        model: nn.Module = timm.create_model(name, **settings)
        first, image = _first_convolution(model)
        native = _stage_input(model, first, image)
        side = _side(native, model, image)
        scale = min(SCALES, key=lambda scale: abs(math.log2(scale * math.sqrt(grid[0] * grid[1]) / side)))
        out = (max(1, int(grid[0] * scale)), max(1, int(grid[1] * scale)))
        if out != (side, side):
            model = _resized(model, timm, name, settings, (out[0] * image[1] // side, out[1] * image[2] // side))
        _replace_stem(model, first, in_channels, scale)
        model.stem_sites = out  # type: ignore[assignment]
        _replace_drop_path(model)
        found = _stage_input(model, first, (in_channels, *grid))
        _run(model, (in_channels, *grid))
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"timm model {name!r} cannot be put on a {grid[0]} x {grid[1]} token grid ({error}); use another one") from error
    if found != _scaled(native, side, out):
        raise ConfigError(
            f"timm model {name!r}: stage 1 gets {found} from a {grid[0]} x {grid[1]} token grid; expected {_scaled(native, side, out)}. "
            "Its stem is built in a way that cannot be replaced; use another model"
        )
    return model


def timm_layers(model: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter of a model with timm's `group_matcher`, counted from 0 at the stem."""
    _load_timm()
    from timm.models import group_parameters

    matcher: Any = model.group_matcher
    layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    return layers


def _load_timm() -> Any:
    with optional_import("models named timm:NAME need timm", extra="timm"):
        import timm
    return timm


def _first_convolution(model: nn.Module) -> tuple[str, tuple[int, int, int]]:
    """Return the name of the first convolution, and the image size (channels, height, width) that the model was made for."""
    config: dict[str, Any] = getattr(model, "default_cfg", None) or {}
    name = config.get("first_conv")
    if not isinstance(name, str) or not isinstance(model.get_submodule(name), nn.Conv2d):
        raise ValueError(f"it has no single first convolution, timm says {name!r}")
    channels, height, width = config.get("input_size", (3, 224, 224))
    return name, (channels, height, width)


def _stem_and_stage(model: nn.Module, first: str) -> tuple[list[nn.Module], nn.Module]:
    """Return the modules of the stem, in order of definition, and the first stage.

    Both are inside one child where the child with the first convolution also has the last features that timm names (DenseNet's `features`).
    """
    info: Any = getattr(model, "feature_info", None)
    parent, inner, last = model, first, str(info[-1]["module"]) if info else ""
    while True:
        children = list(parent.named_children())
        start = next(i for i, (name, _) in enumerate(children) if f"{inner}.".startswith(f"{name}."))
        holder = f"{children[start][0]}."
        if not (inner.startswith(holder) and last.startswith(holder)):
            break
        parent, inner, last = children[start][1], inner.removeprefix(holder), last.removeprefix(holder)
    weighty = [i for i in range(start + 1, len(children)) if any(parameter.ndim > 1 for parameter in children[i][1].parameters())]
    if not weighty:
        raise ValueError(f"no stage follows its first convolution {first!r}")
    stage = next((i for i in weighty if any(children[i][1].children())), weighty[0])
    return [module for _, child in children[start:stage] for module in child.modules()], children[stage][1]


class _Reached(Exception):
    """Ends a forward pass at stage 1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.shape = shape


@torch.no_grad()
def _run(model: nn.Module, size: tuple[int, int, int]) -> None:
    """Run the model on zeros of `size` (channels, height, width), and restore its state."""
    training = model.training
    try:
        model.eval()(torch.zeros(1, *size))
    finally:
        model.train(training)


def _stage_input(model: nn.Module, first: str, size: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the shape that stage 1 gets for one input of `size` (channels, height, width)."""

    def stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            raise _Reached(tuple(inputs[0].shape))

    hooks = [module.register_forward_pre_hook(stop) for module in _stem_and_stage(model, first)[1].modules()]
    try:
        _run(model, size)
    except _Reached as reached:
        return reached.shape
    finally:
        for hook in hooks:
            hook.remove()
    raise ValueError("its first stage was not reached")


def _side(shape: tuple[int, ...], model: nn.Module, image: tuple[int, int, int]) -> int:
    """Return the side of the square map in the shape [1, C, n, n], [1, n, n, C] or [1, tokens, C]."""
    if len(shape) == 4:
        return shape[2]
    info: Any = getattr(model, "feature_info", None)
    if not info:
        raise ValueError(f"stage 1 gets tokens of shape {shape}, and timm does not tell their grid")
    return int(image[1] // info[0]["reduction"])


def _scaled(native: tuple[int, ...], side: int, out: tuple[int, int]) -> tuple[int, ...]:
    """Return the native shape with its side x side sites replaced by `out`."""
    if len(native) == 3:
        return (native[0], native[1] - side * side + out[0] * out[1], native[2])
    return (*native[:2], *out) if native[2] == native[3] else (native[0], *out, native[3])


def _resized(model: nn.Module, timm: Any, name: str, settings: dict[str, Any], image: tuple[int, int]) -> nn.Module:
    """Return the model for another image size. Attention over fixed grids needs the new size; convolutions take any size."""
    try:
        resized: nn.Module = timm.create_model(name, img_size=image, **settings)
    except TypeError:
        return model
    return resized


def _replace_stem(model: nn.Module, first: str, in_channels: int, scale: float) -> None:
    """Put the adaptor in place of the first convolution, and remove the later stem layers that change the size of the map."""
    stem = {id(module) for module in _stem_and_stage(model, first)[0]}
    for name, module in list(model.named_modules()):
        if id(module) not in stem:
            continue
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            _put(model, name, nn.Identity())
        elif name == first:
            _put(model, name, _adaptor(in_channels, module.out_channels, scale, module.bias is not None))
        elif isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        elif getattr(module, "img_size", None) is not None:
            module.img_size = None  # timm's PatchEmbed would insist on its original image size


def _replace_drop_path(model: nn.Module) -> None:
    """Replace timm's stochastic depth by ours, which takes its random numbers from outside."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "DropPath" and not isinstance(module, DropPath):
            _put(model, name, DropPath(float(getattr(module, "drop_prob", 0.0) or 0.0)))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _adaptor(in_channels: int, out_channels: int, scale: float, bias: bool) -> nn.Module:
    """Return an overlapping convolution that scales the side by `scale`, up or down: kernel 2 s, step s, padding s / 2, as in SeiT."""
    if scale == 1.0:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    if scale < 1.0:
        step = round(1 / scale)
        return nn.Conv2d(in_channels, out_channels, 2 * step, step, step // 2, bias=bias)
    step = round(scale)
    return nn.ConvTranspose2d(in_channels, out_channels, 2 * step, step, step // 2, bias=bias)
