"""Default settings for a decent classifier, chosen by the size and layout of the dataset."""

from __future__ import annotations

import runpy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.dataset import open_dataset
from tokenshards.stem_adaptors.augment import allowed_augmentations, augmentation_named, default_augmentations
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.data.class_choice import class_part, named_classes, whole_images
from tokenshards.stem_adaptors.data.label_maps import map_classes, map_format
from tokenshards.stem_adaptors.data.loader import TrainingData
from tokenshards.stem_adaptors.data.mixing import Mix, mix
from tokenshards.stem_adaptors.data.selection import sample_count
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.recipes import recipe_file
from tokenshards.stem_adaptors.segment_config import SegmentConfig
from tokenshards.stem_adaptors.training.run_directory import Run

__all__ = [
    "default_configs",
    "fine_tuning_configs",
    "pretraining_configs",
    "read_recipe",
    "segmenting_configs",
    "smaller_batch_note",
    "training_data",
    "usual_configs",
    "whole_count",
    "with_given",
]

# Number of images below which each model is the best choice: measured on digits and Tiny-ImageNet-10 for the small sizes; from SeiT and
# DeiT for the large ones.
_MODELS = ((3_000, "vit_nano"), (20_000, "vit_micro"), (200_000, "vit_tiny"), (1_000_000, "vit_small"))
_LARGEST = "vit_base"
_SMALL = 20_000
"""Below this number of images SeiT's augmentations, made for 300 epochs of ImageNet, hide too much: milder ones are used."""
_STEPS_PER_EPOCH = 24
_BATCH_SIZES = (16, 1024)
_SAMPLES_SEEN = 60_000
_EPOCHS = (40, 300)
_MOST_SCORES = 1 << 26
"""Most numbers of a batch's scores of pixels: 256 MB."""
_SAMPLES_PRETRAINED = 400_000
_EPOCHS_PRETRAINED = (40, 400)


def training_data(
    url: str,
    *,
    fraction: float = 1.0,
    seed: int = 0,
    classes: Sequence[str] = (),
    mix_with: tuple[str, ...] = (),
    storage_options: dict[str, Any] | None = None,
) -> TrainingData:
    """Open a training set: a dataset, or a weighted mix with other datasets, given as `URL=WEIGHT`.

    `classes`: names of those to keep, see `named_classes`. `fraction`: the share of each class. Raises ConfigError for a class that no
    dataset has.
    """
    places = [(url, 1.0), *map(_place_and_weight, mix_with)]
    datasets = [open_dataset(place, storage_options=storage_options) for place, _ in places]
    names = named_classes(classes, [name for dataset in datasets for name in dataset.classes]) if classes else ()
    parts = [class_part(dataset, names, fraction=fraction, seed=seed, remap=True) for dataset in datasets]
    return mix([(part, weight) for part, (_, weight) in zip(parts, places, strict=True)]) if mix_with else parts[0]


def _place_and_weight(text: str) -> tuple[str, float]:
    place, _, weight = text.rpartition("=")
    try:
        return place or text, float(weight)
    except ValueError:
        raise ConfigError(f"--mix is {text!r}; expected URL=WEIGHT, such as more.tokens=0.5") from None


def default_configs(data: TrainingData) -> dict[str, Any]:
    """Return the configs `model`, `augment`, `loader` and `train` for a dataset of this size and layout.

    A share counts as all images of its classes, so that shares of one dataset train one model in one way. Only the batch is smaller where
    the share does not fill one.
    """
    count = whole_count(data)
    batch_size = _fitting(_batch_size(count), sample_count(data))
    augment = default_augmentations(data.spec)
    if count < _SMALL:
        augment = augmentation_named("mild", data.spec)
    epochs = min(max(round(_SAMPLES_SEEN / max(1, count)), _EPOCHS[0]), _EPOCHS[1])
    return {
        "model": ModelConfig(name=next((name for limit, name in _MODELS if count < limit), _LARGEST)),
        "augment": augment,
        "loader": LoaderConfig(batch_size=batch_size),
        "train": TrainConfig(epochs=epochs, lr=2e-3, warmup_epochs=2) if count < _SMALL else TrainConfig(epochs=epochs, lr=1.5e-3),
    }


def pretraining_configs(data: TrainingData) -> dict[str, Any]:
    """Return the configs of a pre-training: those of `default_configs` with a patch stem, learned codes, and what SeiT++ changes.

    Masks, optimiser and rate are those of SeiT++ (Lee et al. 2024). Below `_SMALL` images they are ours: small batches, because
    steps count; three quarters of the patches hidden, none of these in the encoder, a small decoder, crops without resampling, and on a
    grid features of patches as targets: from some thousand images a model learns them, and not ids, in minutes.
    """
    configs, count = default_configs(data), whole_count(data)
    model = replace(configs["model"], stem="patch", learned_codebook=True, embed_norm=True)
    augment = augmentation_named("mtm", data.spec)
    if augment.crop == "rrc" and (data.spec.codebook is None or count < _SMALL):
        augment = replace(augment, crop="random")  # of ids: it needs no codebook, and costs a small model nothing
    epochs = min(max(round(_SAMPLES_PRETRAINED / max(1, count)), _EPOCHS_PRETRAINED[0]), _EPOCHS_PRETRAINED[1])
    train = TrainConfig(epochs=epochs, lr=2.4e-3, min_lr=0.0, warmup_epochs=epochs / 10, weight_decay=0.05, beta2=0.95, label_smoothing=0.0)
    if count >= _SMALL:
        return {"model": model, "augment": augment, "loader": configs["loader"], "train": train, "mask": MaskConfig()}
    whole, layout = 0.75, data.spec.layout
    of_grid = layout.kind == "grid" and not layout.variable and data.spec.codebook is not None
    mask = MaskConfig(
        ratio_mean=whole,
        ratio_std=0.0,
        ratio_min=whole,
        ratio_max=whole,
        drop_share=whole,
        targets="features" if of_grid else "ids",
        predict_share=1.0 if of_grid else 0.34,
        decoder_depth=1,
    )
    loader = replace(configs["loader"], batch_size=min(configs["loader"].batch_size, 32))
    return {"model": model, "augment": augment, "loader": loader, "train": replace(train, lr=2e-3), "mask": mask}


def segmenting_configs(data: TrainingData, start: Run | None = None) -> dict[str, Any]:
    """Return the configs of a training on masks: those of `default_configs`, of the whole grid, with one linear layer as the head.

    Operations on single ids and CutMix are off, labels are not smoothed, and small data are mirrored. The batch is so small that the scores
    of its pixels take at most `_MOST_SCORES` numbers. `start`: the run that the first weights come from.
    """
    configs = default_configs(data) if start is None else fine_tuning_configs(data, start)
    augment = replace(configs["augment"], synonym_prob=0.0, swap_prob=0.0, crop_share=1.0, cutmix_prob=0.0)
    if whole_count(data) < _SMALL:
        augment = replace(augment, flip_prob=0.5)
    scores = map_classes(data) * map_format(data).pixels
    batch_size = min(configs["loader"].batch_size, max(1, _MOST_SCORES // scores))
    return {
        **configs,
        "augment": allowed_augmentations(data.spec, augment),
        "loader": replace(configs["loader"], batch_size=batch_size),
        "train": replace(configs["train"], label_smoothing=0.0),
        "segment": SegmentConfig(),
    }


def fine_tuning_configs(data: TrainingData, start: Run) -> dict[str, Any]:
    """Return the configs of a classifier that starts from the weights of a run: its model, and after a pre-training a rate for it.

    Drop path and layer decay of large sets are those of SeiT++ (Lee et al. 2024). Below `_SMALL` images layer decay costs accuracy.
    """
    configs = default_configs(data)
    model, train = start.model, configs["train"]
    if start.objective != "classify" and whole_count(data) < _SMALL:
        train = replace(train, lr=1e-3)
    elif start.objective != "classify":
        model, train = replace(model, drop_path=0.1), replace(train, layer_decay=0.65)
    return {**configs, "model": model, "train": train}


def usual_configs(data: TrainingData, objective: str = "classify", start: Run | None = None) -> dict[str, Any]:
    """Return the configs that a training has where nobody gives others. `start`: the run that the first weights come from."""
    if objective == "mtm":
        configs = pretraining_configs(data)
        return configs if start is None else {**configs, "model": start.model}
    if objective == "segment":
        return segmenting_configs(data, start)
    return default_configs(data) if start is None else fine_tuning_configs(data, start)


def read_recipe(recipe: str) -> dict[str, Any]:
    """Run a recipe, by its name or path, and return its configs by part name.

    A recipe is a Python file that defines some of MODEL, AUGMENT, LOADER, TRAIN, for `pretrain` MASK, and for masks SEGMENT. Raises
    ConfigError where there is no such recipe or file, where it fails, defines none of these names, or defines one with another type.
    """
    path = recipe_file(recipe)
    kinds = {
        "model": ModelConfig,
        "augment": AugmentConfig,
        "loader": LoaderConfig,
        "train": TrainConfig,
        "mask": MaskConfig,
        "segment": SegmentConfig,
    }
    try:
        names = runpy.run_path(path)
    except Exception as error:  # a user's file may raise anything
        raise ConfigError(f"--recipe {recipe}: cannot be run ({type(error).__name__}: {error})") from None
    found = {part: names[part.upper()] for part in kinds if part.upper() in names}
    wrong = [part.upper() for part, value in found.items() if not isinstance(value, kinds[part])]
    if wrong or not found:
        wanted = ", ".join(f"{part.upper()} = {kind.__name__}(…)" for part, kind in kinds.items())
        raise ConfigError(
            f"--recipe {recipe}: {f'{wrong} are of another type' if wrong else 'nothing is defined'}; expected some of {wanted}"
        )
    return found


def with_given(configs: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the configs, with the fields in `given` that are not None in place of their own fields."""
    return {
        part: replace(config, **{name: value for name, value in given.get(part, {}).items() if value is not None})
        for part, config in configs.items()
    }


def whole_count(data: TrainingData) -> int:
    """Return the samples of the classes that the data are taken from, as if there were no fraction."""
    return sum(map(whole_images, data.parts if isinstance(data, Mix) else (data,)))


def smaller_batch_note(data: TrainingData, loader: LoaderConfig) -> str | None:
    """Return a note where the default batch size is not that of the whole dataset."""
    count, usual = sample_count(data), _batch_size(whole_count(data))
    if loader.batch_size == usual or loader.batch_size != _fitting(usual, count):
        return None
    return f"note: the batch size is {loader.batch_size}, because {count:,} images do not fill one of {usual}, the default for all images"


def _fitting(batch_size: int, count: int) -> int:
    """Return the batch size, halved until so many samples fill a batch."""
    while batch_size > max(1, count):
        batch_size = (batch_size + 1) // 2
    return batch_size


def _batch_size(count: int) -> int:
    """Return the power of two that gives about `_STEPS_PER_EPOCH` steps or more, within bounds."""
    smallest, largest = _BATCH_SIZES
    size = smallest
    while size < largest and count // (2 * size) >= _STEPS_PER_EPOCH:
        size *= 2
    return min(size, max(1, count))
