"""Weights of a run for timm, under timm's names: the classifier of embeddings, or its encoder with a fresh stem for images.

The model of timm that the weights are for is made here and gets them, so that what is given away is known to load.

Shapes: D channels of an embedding, E width, N tokens, H x W their grid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError, require, shorten
from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.storage.store import Store, open_parent
from tokenshards.stem_adaptors.models.blocks import Block
from tokenshards.stem_adaptors.models.classifier import VisionTransformer
from tokenshards.stem_adaptors.models.stems import ConvStem
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective
from tokenshards.stem_adaptors.training.run_directory import open_objective

__all__ = ["ImageShape", "TimmWeights", "export_classifier", "image_shape", "timm_weights"]

VIT = "vit_base_patch16_224"
"""timm's ViT that takes all sizes as options."""
VIT_PATCH = 16
POSITIONS, STEM = "pos_embed", "patch_embed.proj"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageShape:
    """Images that an encoder shall see, in pixels. None is the patch of 16 of our ViTs, and what a model of timm has."""

    size: int
    patch: int | None = None

    def __post_init__(self) -> None:
        require(self.size >= 1, "--image-size", self.size, "at least 1 pixel")

    @property
    def vit_patch(self) -> int:
        """The patch of a ViT of ours. Raises ConfigError where it does not divide the image."""
        patch = VIT_PATCH if self.patch is None else self.patch
        if patch < 1 or self.size % patch:
            raise ConfigError(f"--patch is {patch}, --image-size {self.size}; expected a patch that divides the image")
        return patch


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmWeights:
    """Tensors for the model that `timm.create_model(name, **options)` makes."""

    tensors: Mapping[str, Tensor]
    name: str
    options: Mapping[str, Any]
    fresh: tuple[str, ...]
    """Tensors of timm's model that keep their first values."""
    unused: tuple[str, ...]
    """Tensors of the run that timm's model has no place for."""
    stem: tuple[Any, ...] = ()
    """Arguments of the convolution that replaces timm's first one, which does not overlap; empty where timm's fits."""

    def code(self, file: str) -> str:
        """Return Python that makes the model and gives it the weights in `file`."""
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        lines = ["import timm"]
        lines += ["import torch"] if self.stem else []
        lines += ["from timm.models import load_checkpoint", "", f"model = timm.create_model({self.name!r}{options})"]
        lines += [f"model.{STEM} = torch.nn.Conv2d({', '.join(map(repr, self.stem))})"] if self.stem else []
        return "\n".join([*lines, f"load_checkpoint(model, {file!r}{', strict=False' if self.fresh else ''})"])


def timm_weights(backbone: nn.Module, name: str, channels: int, classes: int, image: ImageShape | None) -> TimmWeights:
    """Return the weights of a backbone for timm; with `image` those of an encoder of images, whose stem is fresh.

    `name` is the model's in `ModelConfig`, `channels` D; `classes` is 0 where there is no head. Positions are resized to the grid of the
    images. Raises ConfigError where timm is missing or has no such model.
    """
    with optional_import("export classifier makes the model of timm that the weights are for, and needs timm", extra="timm"):
        import timm
    stem: tuple[Any, ...] = ()
    if isinstance(backbone, VisionTransformer):
        plain, options = VIT, _sizes(backbone, classes)
        if image is None:
            inputs, stem = _token_input(backbone, channels)
            options |= inputs
        else:
            options |= {"img_size": image.size, "patch_size": image.vit_patch}
        model = timm.create_model(plain, **options)
    else:
        plain, options, model = _of_timm(timm, name, classes, image)
    if stem:
        model.patch_embed.proj = nn.Conv2d(*stem)
    wanted, tensors = model.state_dict(), {key: tensor.detach().cpu() for key, tensor in backbone.state_dict().items()}
    if image is not None:
        if 0 in _grid(model):
            raise ConfigError(f"--image-size is {image.size}, less than a patch of {name}; give a larger one")
        first = str(model.default_cfg["first_conv"])
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith((f"{first}.", "patch_embed."))}
        if POSITIONS in tensors and POSITIONS in wanted:
            tensors[POSITIONS] = _resized(tensors[POSITIONS], _grid(backbone), wanted[POSITIONS], _grid(model))
    fitting = {key: tensor.contiguous() for key, tensor in tensors.items() if key in wanted and tensor.shape == wanted[key].shape}
    model.load_state_dict(fitting, strict=False)
    fresh, unused = wanted.keys() - fitting.keys(), backbone.state_dict().keys() - fitting.keys()
    return TimmWeights(tensors=fitting, name=plain, options=options, fresh=tuple(sorted(fresh)), unused=tuple(sorted(unused)), stem=stem)


def _of_timm(timm: Any, name: str, classes: int, image: ImageShape | None) -> tuple[str, dict[str, Any], nn.Module]:
    """Return the name, the options and a new model of timm for images. Raises ConfigError for what is none, or is no model of images."""
    if not name.startswith("timm:"):
        raise ConfigError(f"the model of the run is {name}, which timm does not know; expected a ViT of ours, or timm:NAME")
    if image is None:
        raise ConfigError(f"the stem for tokens of {name} is none of timm's; expected --image-size N, for an encoder of images")
    if image.patch is not None:
        raise ConfigError(f"--patch is {image.patch}; {name} has a patch of its own. Leave --patch out")
    plain, options = name.removeprefix("timm:"), {"num_classes": classes, "img_size": image.size}
    try:
        return plain, options, timm.create_model(plain, **options)
    except TypeError:  # convolutions take images of any size
        del options["img_size"]
        return plain, options, timm.create_model(plain, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--image-size is {image.size}, which {name} does not take ({shorten(str(error))}); give another") from None


def _sizes(backbone: VisionTransformer, classes: int) -> dict[str, Any]:
    blocks = [block for block in backbone.blocks if isinstance(block, Block)]
    sizes = {"embed_dim": backbone.pos_embed.shape[2], "depth": len(blocks), "num_heads": blocks[0].attn.heads}
    return {"num_classes": classes, "global_pool": "avg", **sizes}


def _token_input(backbone: VisionTransformer, channels: int) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Return the options of timm's ViT for embeddings, and the arguments of a convolution that overlaps."""
    stem = backbone.patch_embed
    if not isinstance(stem, ConvStem) or len(stem.sites) != 2 or stem.embed_norm is not None or stem.step[0] != stem.step[1]:
        what = (
            "norms every site" if getattr(stem, "embed_norm", None) is not None else f"is a {type(stem).__name__} over {stem.grid} tokens"
        )
        raise ConfigError(f"the stem {what}, which no ViT of timm does; expected --image-size N, for an encoder of images")
    if any(size % stem.step[0] for size in stem.sites):
        raise ConfigError(f"the stem fills up {stem.sites} sites to whole patches of {stem.step}; expected --image-size N, for images")
    proj = stem.proj
    inputs = {"img_size": stem.sites, "patch_size": stem.step[0], "in_chans": channels}
    return inputs, (channels, proj.out_channels, proj.kernel_size, proj.stride, proj.padding) if stem.overlap else ()


def _grid(model: nn.Module) -> tuple[int, ...]:
    """Return the tokens of a ViT along each axis."""
    found: Any = getattr(model, "grid", None) or getattr(getattr(model, "patch_embed", None), "grid_size", ())
    return tuple(int(size) for size in found)


def _resized(positions_1NE: Tensor, grid: tuple[int, ...], wanted_1NE: Tensor, wanted_grid: tuple[int, ...]) -> Tensor:
    """Return positions of another grid, bicubic, after the class token; those given where one of the two has no rows and columns."""
    if len(grid) != 2 or len(wanted_grid) != 2 or positions_1NE.shape == wanted_1NE.shape:
        return positions_1NE
    first = positions_1NE.shape[1] - grid[0] * grid[1]
    class_1PE, map_1NE = positions_1NE[:, :first], positions_1NE[:, first:]
    map_1EHW = map_1NE.transpose(1, 2).reshape(1, -1, *grid)
    resized = F.interpolate(map_1EHW, wanted_grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([class_1PE, resized.flatten(2).transpose(1, 2)], dim=1)


def image_shape(size: int | None, patch: int | None) -> ImageShape | None:
    """Return what the options of the command say. Raises ConfigError for a patch without an image."""
    if size is None:
        if patch is not None:
            raise ConfigError(f"--patch is {patch} without --image-size; expected both, or none for a model of tokens")
        return None
    return ImageShape(size=size, patch=patch)


def export_classifier(run: Store, file: str, weights: str, image: ImageShape | None, storage_options: dict[str, Any]) -> TimmWeights:
    """Write the weights of a run as `timm_weights` returns them, with its classes as JSON in the metadata of the file.

    Raises the errors of `open_objective` and `timm_weights`, and ConfigError for a file of another kind.
    """
    folder, name = open_parent(file, storage_options=storage_options)
    if not name.endswith(".safetensors"):
        raise ConfigError(f"FILE is {shorten(file)}; expected a name that ends in .safetensors")
    objective, found = open_objective(run, weights)
    model: Any = objective.model
    classes = len(found.classes) if isinstance(objective, ClassifyObjective) else 0
    made = timm_weights(model.backbone, found.model.name, model.embedding.channels, classes, image)
    about = {"format": "pt", "classes": json.dumps(found.classes if classes else []), "fingerprint": found.spec.fingerprint}
    folder.write(name, save(dict(made.tensors), about))
    return made
