"""The sides of seitpp.py: the trainings of each side, their settings, and how one of them is run.

A side is one training or two, each by the product's own Trainer: `mtm` and `all` first learn the tokens of all training images without
labels, then from labels. Every side gets the same CPU seconds; `SHARES` says how many of them go to the first training. `all` has
TokenAdapt and ColorAdapt in the second one: in the first one, which sees ten times as many images, TokenAdapt would take most of the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment.adapt_halves import with_token_adapt
from tokenshards.stem_adaptors.comparison.paired import packed
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.selection import Selection, select
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.training.timed_trainer import TimedTrainer
from tokenshards.stem_adaptors.training.training_request import TrainRequest

SIDES = ("supervised", "mtm", "adapt", "all")
FRACTIONS = (1.0, 0.25, 0.1)
CHOOSING_SHARE = 1 / 3
"""Share of the training images that settings are chosen on."""
CHOOSING_SEED = 777


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training, which ends when its CPU seconds are spent."""

    objective: str = "classify"
    seconds: float
    """CPU seconds of the process, from the opening of the data on."""
    warmup: float = 0.1
    """Share of the seconds in which the rate rises."""
    batch_size: int = 64
    model: ModelConfig
    augment: AugmentConfig
    token_adapt: bool = False
    """Send half of each batch through TokenAdapt (`train --tokenadapt`)."""
    train: TrainConfig
    mask: MaskConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run trains: its stages, and on which labels."""

    stages: tuple[Stage, ...]
    fraction: float
    choosing: bool = False
    """Measure on a part of the training images, in place of those held out."""


SUPERVISED_MODEL = ModelConfig(name="vit_micro", width=96, depth=4, heads=3, stem="conv", stem_patch=2)
"""With 10 % of the labels as good as patches that do not overlap and learned code vectors (60.5 against 60.0 % of a part of train)."""
MASKED_MODEL = replace(SUPERVISED_MODEL, stem="patch", learned_codebook=True, embed_norm=True)
MILD = AugmentConfig(flip_prob=0.5, crop_scale_min=0.35, noise_prob=0.25, noise_std=0.5, noise_channel_std=0.5, cutmix_prob=0.5)
STRONG = replace(MILD, crop_scale_min=0.2, noise_prob=0.5, cutmix_prob=1.0)
AUGMENT = {1.0: MILD, 0.25: STRONG, 0.1: STRONG}
"""Few images are seen hundreds of times, so they need the strong form."""
COLOUR_SHARE = 0.125
SUPERVISED = {
    1.0: TrainConfig(lr=2e-3, weight_decay=0.05),
    0.25: TrainConfig(lr=1e-3, weight_decay=0.2),
    0.1: TrainConfig(lr=1e-3, weight_decay=0.2),
}
TUNED = {1.0: TrainConfig(lr=1e-3), 0.25: TrainConfig(lr=1e-3), 0.1: TrainConfig(lr=1e-3)}
TUNED_AUGMENT = {1.0: MILD, 0.25: MILD, 0.1: MILD}
"""After masked token modelling there is time for fewer epochs."""
BATCH, MASKED_BATCH = 64, 32
SHARES = {1.0: 0.3, 0.25: 0.65, 0.1: 0.65}
"""Share of the seconds that learns without labels: the fewer labels, the more."""
MASKED_AUGMENT = AugmentConfig(ops="0.5*flip(), random_crop()")
MASKED = TrainConfig(lr=2e-3, min_lr=2e-5, weight_decay=0.05, beta2=0.95, label_smoothing=0.0)
MASK = MaskConfig(
    ratio_mean=0.75,
    ratio_std=0.0,
    ratio_min=0.75,
    ratio_max=0.75,
    drop_share=0.75,
    targets="features",
    embed_dropout=0.0,
    decoder_depth=1,
    decoder_width=64,
)


def stages_of(side: str, fraction: float, seconds: float) -> tuple[Stage, ...]:
    """Return the trainings of a side, for one of `FRACTIONS`; together they take so many CPU seconds."""
    masked, adapt = side in ("mtm", "all"), side in ("adapt", "all")
    augment = (TUNED_AUGMENT if masked else AUGMENT)[fraction]
    first_seconds = SHARES[fraction] * seconds if masked else 0.0
    second = Stage(
        seconds=seconds - first_seconds,
        batch_size=BATCH,
        model=MASKED_MODEL if masked else SUPERVISED_MODEL,
        augment=replace(augment, coloradapt_prob=COLOUR_SHARE) if adapt else augment,
        token_adapt=adapt,
        train=(TUNED if masked else SUPERVISED)[fraction],
    )
    if not masked:
        return (second,)
    first = Stage(
        objective="mtm",
        seconds=first_seconds,
        batch_size=MASKED_BATCH,
        model=MASKED_MODEL,
        augment=MASKED_AUGMENT,
        train=MASKED,
        mask=MASK,
    )
    return first, second


def training_part(work: Path, choosing: bool) -> Selection:
    """Return the images to learn from."""
    data = open_dataset(str(work / "train"))
    whole = select(data)
    if not choosing:
        return whole
    measured = select(data, fraction=CHOOSING_SHARE, seed=CHOOSING_SEED)
    return select(data, rows=np.setdiff1d(whole.rows_n, measured.rows_n))


def labelled(work: Path, plan: Plan, seed: int) -> Selection:
    """Return the images whose labels a run sees: as many while settings are chosen as in the result, where there are so many."""
    part = training_part(work, plan.choosing)
    share = min(1.0, plan.fraction / (1 - CHOOSING_SHARE) if plan.choosing else plan.fraction)
    return select(part, fraction=share, seed=seed)


def measured_part(work: Path, choosing: bool) -> Selection:
    """Return the images to measure on."""
    if choosing:
        return select(open_dataset(str(work / "train")), fraction=CHOOSING_SHARE, seed=CHOOSING_SEED)
    return select(open_dataset(str(work / "held_out")))


def trained(work: Path, stage: Stage, data: Selection, seed: int, out: Path, pretrained: Path | None) -> TimedTrainer:
    """Train for the seconds of the stage; return the trainer. One seed draws weights, order and augmentation."""
    begun = time.process_time()
    shutil.rmtree(out, ignore_errors=True)
    augment = stage.augment
    if stage.token_adapt:
        augment = with_token_adapt(augment, data.spec, str(work / "adapt"))
    request = TrainRequest(
        data=data,
        val=None,
        out=Store(str(out)),
        model=stage.model,
        augment=augment,
        loader=LoaderConfig(batch_size=min(stage.batch_size, len(data)), seed=seed, cache_dir=str(work / "cache"), cache_gb=4.0),
        train=replace(stage.train, seed=seed, device="cpu", checkpoint_seconds=1e6),
        objective=stage.objective,
        mask=stage.mask,
        pretrained=None if pretrained is None else str(pretrained),
    )
    trainer = TimedTrainer(request, torch.device("cpu"), begun=begun, seconds=stage.seconds, warmup=stage.warmup)
    trainer.train()
    return trainer


def digest_of_stage(stage: Stage) -> str:
    """Return a digest of all settings."""
    return hashlib.sha256(json.dumps(asdict(stage), sort_keys=True).encode()).hexdigest()[:12]


def pretrain_once(work: Path, side: str, seed: int, plan: Plan) -> dict[str, Any]:
    """Train the first stage, without labels; keep the run for those that start from it."""
    torch.set_num_threads(1)
    place = pretraining_place(work, plan, seed)
    out = place.with_name(f"{place.name}.{os.getpid()}")  # another process may make the same
    trainer = trained(work, plan.stages[0], training_part(work, plan.choosing), seed, out, None)
    shutil.rmtree(place, ignore_errors=True)
    out.rename(place)
    return trainer.figures()


def pretraining_place(work: Path, plan: Plan, seed: int) -> Path:
    """Return where the first training of a plan is kept."""
    return work / "trainings" / f"{digest_of_stage(plan.stages[0])}.{plan.choosing}.{seed}"


def train_side(work: Path, side: str, seed: int, plan: Plan) -> dict[str, Any]:
    """Train on labels; return which images were classified correctly. `cpu_seconds` are those of this training alone."""
    torch.set_num_threads(1)
    pretrained = pretraining_place(work, plan, seed) if len(plan.stages) > 1 else None
    out = work / "trainings" / f"{side}-{plan.fraction}-{seed}.{os.getpid()}"
    trainer = trained(work, plan.stages[-1], labelled(work, plan, seed), seed, out, pretrained)
    model = trainer.model.eval()
    config = LoaderConfig(batch_size=100, order="sequential", end="pad", cache_dir=str(work / "cache"), cache_gb=4.0)
    right = []
    with torch.no_grad():
        for batch in TokenLoader(measured_part(work, plan.choosing), config):
            right.append((model(batch.ids_BLQ).argmax(dim=1) == batch.labels_B)[batch.weights_B > 0].numpy())
    right_N = np.concatenate(right)
    shutil.rmtree(out, ignore_errors=True)
    return {
        **{f"train_{name}" if name in trainer.objective.training_figures else name: value for name, value in trainer.figures().items()},
        "right": packed(right_N),
        "images": len(right_N),
        "top1": round(float(right_N.mean()), 5),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
