"""Start from weights that exist: of our own runs, of timm's models or SeiT's, on tokens or pixels; and train a part of a model."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.storage.store import Store, open_parent
from tokenshards.stem_adaptors.training.run_directory import BEST, RUN_JSON

__all__ = ["LoadReport", "load_pretrained", "named_tensors", "trainable_parameters"]

_WRAPPERS = ("model/", "module.", "_orig_mod.", "backbone.", "model.")
_POSITIONS = "pos_embed"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Names of tensors: taken, left as they were initialised, and found in the file but of no use."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]
    renamed: tuple[str, ...] = ()
    """Names of the file that were taken for others."""

    def __str__(self) -> str:
        fresh = f"; left fresh: {', '.join(self.fresh)}" if self.fresh else ""
        renamed = "; norm.* taken as fc_norm.*" if self.renamed else ""
        return f"{len(self.loaded)} tensors loaded, {len(self.fresh)} left fresh, {len(self.ignored)} of the file unused{fresh}{renamed}"


def load_pretrained(model: nn.Module, path: str) -> LoadReport:
    """Copy into `model` every tensor of a checkpoint that has its name and shape; the codebook always stays the dataset's.

    `path`: any fsspec URL of a run directory, of `.safetensors`, or of `.pt`, `.pth`, `.ckpt` (read without pickle's power to run code),
    the tensors themselves or below "model" or "state_dict". A model with a `backbone` is loaded into that. A stem or head of another shape
    stays fresh; positions of another grid are interpolated. Raises ConfigError where the file is no checkpoint, or nothing of it fits.
    """
    target = getattr(model, "backbone", model)
    stored = named_tensors(path)
    wanted: dict[str, Tensor] = target.state_dict()
    renamed = tuple(_rename_final_norm(stored, wanted))
    if _POSITIONS in stored and _POSITIONS in wanted:
        resized = _resized_positions(stored[_POSITIONS], wanted[_POSITIONS], _token_grid(target))
        if resized is not None:
            stored[_POSITIONS] = resized
    fitting = {name: tensor for name, tensor in stored.items() if name in wanted and tensor.shape == wanted[name].shape}
    if not any(tensor.ndim > 1 for tensor in fitting.values()):
        raise ConfigError(
            f"{path}: none of its {len(stored)} weights fits the model. It has {shorten(sorted(stored)[:4])}, "
            f"the model {shorten(sorted(wanted)[:4])}. Choose the model that the checkpoint was made with"
        )
    target.load_state_dict(fitting, strict=False)
    return LoadReport(
        tuple(sorted(fitting)), tuple(sorted(wanted.keys() - fitting.keys())), tuple(sorted(stored.keys() - fitting.keys())), renamed
    )


def named_tensors(path: str) -> dict[str, Tensor]:
    """Return what `read_tensors` finds, without the prefixes that wrappers put before names."""
    return {_plain_name(name): tensor for name, tensor in read_tensors(path).items()}


def _rename_final_norm(stored: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Let `norm.*` be `fc_norm.*` where the model has only the latter, as timm names a norm after the mean; return what was renamed.

    SeiT's released ViTs name theirs `norm`. In a file of timm whose model reads the class token it is the norm before that: a start.
    """
    both: tuple[str, ...] = ("norm.weight", "norm.bias")
    names = [name for name in both if name in stored and f"fc_{name}" not in stored and name not in wanted and f"fc_{name}" in wanted]
    for name in names:
        stored[f"fc_{name}"] = stored.pop(name)
    return names


def read_tensors(path: str) -> dict[str, Tensor]:
    """Return the tensors by name of a checkpoint file, or of the best weights of a run directory.

    Raises ConfigError where it holds none or cannot be read safely, MissingObjectError where there is no such file.
    """
    if Store(path).info(RUN_JSON) is not None:
        path = f"{path.rstrip('/')}/{BEST}"
    folder, name = open_parent(path.replace("\\", "/"))
    data = folder.read(name)
    try:
        value: Any = load_safetensors(data) if name.endswith(".safetensors") else torch.load(io.BytesIO(data), "cpu", weights_only=True)
    except Exception as error:  # torch raises a different kind for every way in which a file can be wrong
        raise ConfigError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {shorten(str(error))}); "
            "expected .safetensors, or a file of torch.save that holds tensors alone"
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    tensors = {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor)} if isinstance(value, Mapping) else {}
    if not tensors:
        raise ConfigError(f'{path}: holds {type(value).__name__}; expected tensors by name, or a dict with "model" or "state_dict"')
    return tensors


def trainable_parameters(model: nn.Module, part: str) -> list[nn.Parameter]:
    """Leave gradients on for one part of a classifier alone, and return its parameters.

    `all`; `head`: the last linear layer (linear probe); `attention`: attention, stem, learned code vectors and head. Raises ConfigError for
    another part, or one that the model does not have.
    """
    if part not in ("all", "head", "attention"):
        raise ConfigError(f"train_part is {part!r}; expected all, head or attention")
    heads = {id(parameter) for parameter in _head(getattr(model, "backbone", model)).parameters()}
    stems = _stem_names(getattr(model, "backbone", model))
    chosen, attention = [], False
    for name, parameter in model.named_parameters():
        pieces = name.removeprefix("backbone.").split(".")
        is_attention = "attn" in pieces
        attention |= is_attention
        in_stem = pieces[0] == "embedding" or ".".join(pieces).startswith(stems)
        wanted = part == "all" or id(parameter) in heads or (part == "attention" and (is_attention or in_stem))
        parameter.requires_grad_(wanted)
        if wanted:
            chosen.append(parameter)
    if part == "attention" and not attention:
        raise ConfigError("train_part is 'attention'; this model has no attention layers. Use all or head")
    return chosen


def _plain_name(name: str) -> str:
    """Return the name without what wrappers (our checkpoint, DDP, compile, our classifier) put before it."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _head(backbone: nn.Module) -> nn.ModuleList:
    get: Any = getattr(backbone, "get_classifier", None)
    found = get() if get is not None else getattr(backbone, "head", None)
    return nn.ModuleList(part for part in (found if isinstance(found, tuple | list) else [found]) if isinstance(part, nn.Module))


def _stem_names(backbone: nn.Module) -> tuple[str, ...]:
    """Return what the names of the stem's parameters begin with: our patch_embed, or the first convolution that timm names."""
    config = getattr(backbone, "default_cfg", None) or {}
    return (str(config.get("first_conv", "patch_embed")) + ".",)


def _token_grid(backbone: nn.Module) -> tuple[int, ...] | None:
    grid = getattr(backbone, "grid", None) or getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    return None if grid is None else tuple(int(size) for size in grid)


def _resized_positions(stored_1NE: Tensor, wanted_1NE: Tensor, grid: tuple[int, ...] | None) -> Tensor | None:
    """Return stored positions brought to the model's grid, None where that cannot be: bicubic for pictures, linear for sequences.

    The file says nothing of its grid: tokens of a picture are taken for a square, of which up to two class tokens come first.
    """
    if stored_1NE.shape == wanted_1NE.shape or grid is None or stored_1NE.ndim != 3 or stored_1NE.shape[2] != wanted_1NE.shape[2]:
        return None
    prefix = wanted_1NE.shape[1] - math.prod(grid)
    count = stored_1NE.shape[1]
    found = [extra for extra in (1, 0, 2) if math.isqrt(count - extra) ** 2 == count - extra > 0] if len(grid) == 2 else [prefix]
    if len(grid) > 2 or prefix < 0 or not found or (prefix and not found[0]):
        return None
    class_1PE, map_1NE = stored_1NE[:, :prefix].float(), stored_1NE[:, found[0] :].float().transpose(1, 2)
    if len(grid) == 2:
        side = math.isqrt(map_1NE.shape[2])
        resized = F.interpolate(map_1NE.reshape(1, -1, side, side), grid, mode="bicubic", antialias=True, align_corners=False)
    else:
        resized = F.interpolate(map_1NE, grid[0], mode="linear", align_corners=False)
    return torch.cat([class_1PE, resized.flatten(2).transpose(1, 2)], dim=1).to(stored_1NE.dtype)
