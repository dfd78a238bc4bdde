"""What a training has decided, in a few lines for a person, before the first step."""

from __future__ import annotations

import torch
from torch import nn

from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.augment.language import parse_operations, text_of
from tokenshards.stem_adaptors.augment.presets import PRESETS
from tokenshards.stem_adaptors.config import AugmentConfig, TrainConfig
from tokenshards.stem_adaptors.data.class_choice import left_out_words
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.selection import Selection, sample_count
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.precision import precision_name
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.defaults import usual_configs, whole_count
from tokenshards.stem_adaptors.training.pretrained import run_of
from tokenshards.stem_adaptors.training.run_directory import Run
from tokenshards.stem_adaptors.training.training_request import TrainRequest

__all__ = ["decisions"]


def decisions(
    request: TrainRequest, run: Run, model: nn.Module, *, steps: int, precision: torch.dtype, device: torch.device, ranks: Ranks
) -> list[str]:
    """Return lines on the data, the model, the recipe, the augmentation and the place. Each says whether it is the default."""
    count = sample_count(request.data)
    start = run_of(request.pretrained)
    usual = usual_configs(request.data, request.objective, start)
    whole = whole_count(request.data)
    used = "" if whole == count else f", of which {count:,} are used"
    default, given = f"the default for {whole:,} images{used}", "as given"
    of_run = default if start is None else f"that of {request.pretrained}"
    model_from = of_run if start is None or run.model == start.model else f"{of_run}, with a drop path of {run.model.drop_path:g}"
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    part = "" if trained == weights else f", {trained:,} of them trained"
    layout = run.spec.layout
    stem_sites = getattr(getattr(model, "backbone", None), "stem_sites", None)
    scaled = "" if stem_sites in (None, layout.grid) else f", which sees the sites as a map of {stem_sites[0]} x {stem_sites[1]}"
    sites = " x ".join(map(str, layout.grid)) if layout.grid else str(layout.sites)
    parts = request.data.parts if isinstance(request.data, Mix) else (request.data,)
    labels = f" of {counted(len(run.classes), 'class')}{left_out_words(parts)}" if request.mask is None else ", labels are not read"
    if run.maps is not None:
        labels = f" with masks of {run.maps.height} x {run.maps.width} pixels and {counted(len(run.classes), 'class')}"
    data = f"{count:,} images{labels}"
    same_recipe = run.train == usual["train"] and run.loader.batch_size == usual["loader"].batch_size
    same_mask = request.mask == usual.get("mask")
    same_augment = augmentation_words(run.augment) == augmentation_words(usual["augment"])
    own = [] if request.mask is None else [f"masking       {_masking(request.mask)} ({default if same_mask else given})"]
    if (segment := request.segment) is not None:
        head = "a linear layer" if segment.head == "linear" else f"{segment.head} of {segment.channels} channels"
        own.append(f"head          {head} ({default if segment == usual.get('segment') else given})")
    return [
        f"data          {data}, {sites} sites with {counted(layout.ids_per_site, 'id')}; {_measured(request.val)}",
        f"model         {run.model.name}, {weights:,} weights{part}{scaled} ({model_from if run.model == usual['model'] else given})",
        f"recipe        {_recipe(run.train, steps, run.loader.batch_size)} ({default if same_recipe else given})",
        f"augmentation  {augmentation_words(run.augment)} ({default if same_augment else given})",
        *own,
        f"place         {_place(run.train, precision, device, ranks)}, seed {run.train.seed}",
    ]


def _masking(mask: MaskConfig) -> str:
    drawn = f"{mask.ratio_mean:.0%} of the patches"
    if mask.ratio_std:
        drawn = f"{mask.ratio_min:.0%} to {mask.ratio_max:.0%} of the patches, about {mask.ratio_mean:.0%} +- {mask.ratio_std:.0%}"
    predicted = f", {mask.predict_share:.0%} of the hidden ones are predicted"
    targets = {"ids": "", "features": " by their features", "centroids": f" by one of {mask.centroids} centroids"}[mask.targets]
    return (
        f"{drawn}; the encoder does not see {mask.drop_share:.0%}{predicted}{targets}; a decoder of {counted(mask.decoder_depth, 'block')}"
    )


def _measured(val: TokenDataset | Selection | None) -> str:
    if val is None:
        return "nothing is measured"
    of = f" of {sample_count(val.dataset):,}" if isinstance(val, Selection) else ""
    return f"measured on {sample_count(val):,}{of} images"


def augmentation_words(config: AugmentConfig) -> str:
    """Return the operations that are on, after the name of the preset that has the same ones; of `augment.ops` its text in one form."""
    if config.ops:
        return text_of(parse_operations(config.ops))
    words = _operation_words(config)
    name = next((f"{name}: " for name, preset in PRESETS.items() if name != "none" and _operation_words(preset) == words), "")
    return f"{name}{words}"


def _operation_words(config: AugmentConfig) -> str:
    """Return the operations that are on, with their shares of samples."""
    shares = {
        "synonyms": config.synonym_prob,
        "swap": config.swap_prob,
        "flip": config.flip_prob,
        "noise": config.noise_prob,
        "ColorAdapt": config.coloradapt_prob,
        "dropped sites": config.dropout_prob,
        "CutMix" + " with labels by attention" * (config.cutmix_labels == "attention"): config.cutmix_prob * (config.cutmix_alpha > 0),
        "Mixup": config.cutmix_prob if config.mixup_alpha > 0 else 0.0,
    }
    crops = {"rrc": f"random-resized crop from {config.crop_scale_min:.0%}", "random": "random crop", "centre": ""}
    words = [f"{name} {share:.0%}" for name, share in shares.items() if share > 0]
    return ", ".join([*filter(None, [crops[config.crop]]), *words]) or "none"


def _recipe(config: TrainConfig, steps: int, batch_size: int) -> str:
    extra = f", layer decay {config.layer_decay:g}" if config.layer_decay != 1 else ""
    parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    longest = config.epochs / 2  # as Optimisation cuts it
    warmup = min(config.warmup_epochs, longest)
    cut = (
        f" (cut from {config.warmup_epochs:g} to half of the training; more --epochs leave it whole)"
        if config.warmup_epochs > longest
        else ""
    )
    return (
        f"{counted(config.epochs, 'epoch')} of {counted(steps, 'step')} of {counted(batch_size, 'image')}{parts}, "
        f"AdamW at {config.lr:g} after "
        f"{warmup:g} epoch{'s' * (warmup != 1)} of warm-up{cut}, weight decay {config.weight_decay:g}{extra}"
    )


def _place(config: TrainConfig, precision: torch.dtype, device: torch.device, ranks: Ranks) -> str:
    tf32 = " with TF32" if device.type == "cuda" and precision is torch.float32 else ""
    compiled = ", compiled" if config.compile else ""
    processes = f"{ranks.world_size} processes" if ranks.world_size > 1 else "one process"
    return f"{device} in {precision_name(precision)}{tf32}{compiled}, {processes}"
