"""Starts from existing weights (our own runs, timm's models, SeiT's; on tokens or pixels), and trains a part of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding
from tokenshards.stem_adaptors.training.checkpoints import require_finite
from tokenshards.stem_adaptors.training.run_directory import RUN_JSON, Run, load_run
from tokenshards.stem_adaptors.training.stored_embeddings import same_tables
from tokenshards.stem_adaptors.training.weight_files import code_vectors, plain_names, read_tensors

__all__ = ["LoadReport", "fill_model", "load_pretrained", "run_of", "trainable_parameters"]

_POSITIONS = "pos_embed"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Names of tensors: loaded from the file, left at their initial values, and present in the file but unused."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]
    renamed: tuple[str, ...] = ()
    """Tensors of the file that were loaded under another name."""
    misfits: Mapping[str, str] = field(default_factory=dict)
    """Name of a tensor of another shape in the file -> both shapes as text."""
    other_codes: bool = False
    """The weights learned from other code vectors than those of the model."""
    other_tokenizer: bool = False
    """The weights learned from tokens of another tokenizer, so learned code vectors stay those of the dataset."""

    def __str__(self) -> str:
        names = ", ".join(f"{name}{f' ({self.misfits[name]})' if name in self.misfits else ''}" for name in self.fresh)
        fresh = f"; left fresh: {names}" if self.fresh else ""
        renamed = "; norm.* taken as fc_norm.*" if self.renamed else ""
        codes = (
            "; they learned from other code vectors than the model's: another codebook, or another --set model.raw_embeddings"
            if self.other_codes
            else ""
        )
        if self.other_tokenizer:
            codes = "; they learned from tokens of another tokenizer, so the code vectors start from this dataset's codebook"
        counts = f"{len(self.loaded)} tensors loaded, {len(self.fresh)} left fresh, {len(self.ignored)} of the file unused"
        return f"{counts}{fresh}{renamed}{codes}"


def run_of(path: str | None) -> Run | None:
    """Return the run in the place of first weights; None where there is a file of weights alone, or nothing."""
    if path is None:
        return None
    store = Store(path)
    return load_run(store) if store.info(RUN_JSON) is not None else None


def load_pretrained(model: nn.Module, path: str, fingerprint: str | None = None) -> LoadReport:
    """Copy every tensor of a checkpoint into `model` where name and shape match. A frozen codebook always stays the dataset's.

    `path`: any fsspec URL of a run directory, of `.safetensors`, or of `.pt`, `.pth`, `.ckpt`, which are read without running code. The
    tensors may lie below "model" or "state_dict", and their names may have one prefix, such as `module.` or `model.backbone.`. In a model
    with a `backbone` they go into the backbone. Learned code vectors are loaded too, unless the weights are those of a run whose
    tokenizer has another `fingerprint`. A stem or head of another shape keeps its initial values; positions of another grid are
    interpolated. Raises ConfigError where the file is no checkpoint, where nothing of it fits, and for weights that are not finite.
    """
    run = run_of(path)
    same_codes = run is None or fingerprint is None or run.spec.fingerprint == fingerprint
    return fill_model(model, read_tensors(path), path, same_codes=same_codes)


def fill_model(model: nn.Module, tensors: Mapping[str, Tensor], path: str, *, same_codes: bool = True) -> LoadReport:
    """Do what `load_pretrained` does, with the result of `read_tensors`. `same_codes`: whether ids mean the same to both."""
    target = getattr(model, "backbone", model)
    wanted: dict[str, Tensor] = target.state_dict()
    stored = plain_names(tensors, wanted, path)
    renamed = tuple(_rename_final_norm(stored, wanted))
    if _POSITIONS in stored and _POSITIONS in wanted:
        resized = _resized_positions(stored[_POSITIONS], wanted[_POSITIONS], _token_grid(target))
        if resized is not None:
            stored[_POSITIONS] = resized
    fitting = {name: tensor for name, tensor in stored.items() if name in wanted and tensor.shape == wanted[name].shape}
    misfits = {
        name: f"{list(stored[name].shape)} in the file, {list(tensor.shape)} in the model"
        for name, tensor in wanted.items()
        if name in stored and name not in fitting
    }
    if not any(tensor.ndim > 1 for tensor in fitting.values()):
        shapes = "; ".join(f"{name} is {text}" for name, text in list(misfits.items())[:4])
        names = (
            f"Their names are not those of the model: the file has {shorten(sorted(stored)[:4])}, the model {shorten(sorted(wanted)[:4])}"
        )
        raise ConfigError(
            f"{path}: none of its {len(stored)} weights fits the model. {shapes or names}. Choose the model that the file was made with"
        )
    require_finite(fitting, path)
    target.load_state_dict(fitting, strict=False)
    learned = _learned_codes(model, tensors, path) if same_codes else []
    return LoadReport(
        tuple(sorted([*fitting, *learned])),
        tuple(sorted(wanted.keys() - fitting.keys())),
        tuple(sorted(stored.keys() - fitting.keys())),
        renamed,
        misfits,
        other_codes=_other_codes(model, tensors, path),
        other_tokenizer=not same_codes,
    )


def _learned_codes(model: nn.Module, tensors: Mapping[str, Tensor], path: str) -> list[str]:
    """Copy code vectors into a model that learns its own, where their shapes are the model's. Return their names."""
    embedding = getattr(model, "embedding", None)
    if not isinstance(embedding, TokenEmbedding) or not embedding.learned:
        return []
    try:
        stored = code_vectors(tensors, len(embedding.vocabulary), path)
    except ConfigError:  # another number of levels
        return []
    own = {f"level_{level}": table_KD for level, table_KD in enumerate(embedding.parameters())}
    if stored is None or [table.shape for table in stored] != [table.shape for table in own.values()]:
        return []
    found = dict(zip(own, stored, strict=True))
    require_finite(found, path)
    embedding.load_state_dict(found)
    return [f"embedding.{name}" for name in found]


def _other_codes(model: nn.Module, tensors: Mapping[str, Tensor], path: str) -> bool:
    """Whether the file has code vectors that are not those of the model."""
    embedding = getattr(model, "embedding", None)
    if not isinstance(embedding, TokenEmbedding) or embedding.learned:
        return False
    try:
        stored = code_vectors(tensors, len(embedding.vocabulary), path)
    except ConfigError:  # another number of levels
        return True
    return stored is not None and not same_tables(stored, embedding)


def _rename_final_norm(stored: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Rename `norm.*` to `fc_norm.*` where the model has only the latter; return the new names.

    timm calls a norm after the mean `fc_norm`; SeiT's released ViTs call the same norm `norm`. In a timm file whose model reads the class
    token, `norm` comes before the pooling; its weights are still a usable start.
    """
    both: tuple[str, ...] = ("norm.weight", "norm.bias")
    names = [name for name in both if name in stored and f"fc_{name}" not in stored and name not in wanted and f"fc_{name}" in wanted]
    for name in names:
        stored[f"fc_{name}"] = stored.pop(name)
    return names


def trainable_parameters(model: nn.Module, part: str) -> list[nn.Parameter]:
    """Turn gradients off outside one part of a classifier, and return the parameters of that part.

    `all`; `head`: the last linear layer (linear probe); `attention`: attention, stem, learned code vectors and head. Raises ConfigError for
    another name, or for a part that the model does not have.
    """
    if part not in ("all", "head", "attention"):
        raise ConfigError(f"train_part is {part!r}; expected all, head or attention")
    heads = {id(parameter) for parameter in _head(getattr(model, "backbone", model)).parameters()}
    if part != "all" and not heads:
        raise ConfigError(
            f"train_part is {part!r}; this model has no head that can be found; expected an attribute `head`, or a method "
            "`get_classifier` as timm's models have. Use all"
        )
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


def _head(backbone: nn.Module) -> nn.ModuleList:
    get: Any = getattr(backbone, "get_classifier", None)
    found = get() if get is not None else getattr(backbone, "head", None)
    return nn.ModuleList(part for part in (found if isinstance(found, tuple | list) else [found]) if isinstance(part, nn.Module))


def _stem_names(backbone: nn.Module) -> tuple[str, ...]:
    """Return the name prefixes of the stem's parameters: our patch_embed, or the first convolution that timm names."""
    config = getattr(backbone, "default_cfg", None) or {}
    return (str(config.get("first_conv", "patch_embed")) + ".",)


def _token_grid(backbone: nn.Module) -> tuple[int, ...] | None:
    grid = getattr(backbone, "grid", None) or getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    return None if grid is None else tuple(int(size) for size in grid)


def _resized_positions(stored_1NE: Tensor, wanted_1NE: Tensor, grid: tuple[int, ...] | None) -> Tensor | None:
    """Return stored positions resized to the model's grid, bicubic for images and linear for sequences; None where that is impossible.

    The file does not name its grid. The tokens of an image are taken for a square, after up to two class tokens.
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
