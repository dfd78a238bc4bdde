"""Masked token modelling: ViT-B in bfloat16 with the paper's masks, and what dropped patches save."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Report, bf16_peak_tflops
from part_train import REAL, SMALL, Bench, Quiet, Scale, run_part

from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment import PRESETS
from tokenshards.stem_adaptors.config import LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models.masked import MaskedTokenModel
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.trainer import Trainer, TrainRequest

CODES = 391
"""Of SeiT's tokens."""
BASE = replace(
    REAL,
    model=ModelConfig(name="vit_base", stem="patch", learned_codebook=True, embed_norm=True),
    codes=CODES,
    rows=4096,
    batch=512,
    warm_up=4,
    steps=12,
)
TINY = replace(SMALL, model=replace(SMALL.model, stem="patch", learned_codebook=True, embed_norm=True))


def trainer(bench: Bench, name: str, mask: MaskConfig, **train: Any) -> Trainer:
    """Return a pre-training on the bench's rows."""
    request = TrainRequest(
        data=bench.dataset,
        val=None,
        out=Store(str(bench.root / name)),
        model=bench.scale.model,
        augment=PRESETS["mtm"],
        loader=LoaderConfig(batch_size=bench.scale.batch, cache_dir=str(bench.root / "cache")),
        train=TrainConfig(epochs=100, precision="bf16", beta2=0.95, label_smoothing=0.0, checkpoint_seconds=3600.0, **train),
        objective="mtm",
        mask=mask,
    )
    return Trainer(request, Ranks(), bench.device, Quiet())


def flops_per_image(model: MaskedTokenModel, kept: int) -> float:
    """Return multiplications and additions of a training step per image, without augmentation. Backward counts twice the forward pass.

    The scores of codes are counted for all patches, as a GPU computes them.
    """
    width, own, patches = model.backbone.pos_embed.shape[2], model.decoder.width, len(model.sites_NP)
    stem = sum(parameter.numel() for parameter in model.backbone.patch_embed.parameters() if parameter.ndim > 1) * patches
    encoder = len(model.backbone.blocks) * (12 * width * width * (1 + kept) + 2 * (1 + kept) ** 2 * width)
    decoder = len(model.decoder.blocks) * (12 * own * own * (1 + patches) + 2 * (1 + patches) ** 2 * own)
    codes = sum(table.numel() for table in model.embedding.tables()) * model.sites_NP.numel()
    return 3.0 * 2.0 * (stem + encoder + decoder + width * own * (1 + kept) + model.head.linear.weight.numel() * patches + codes)


def measure(report: Report, scale: Scale, root: Path, device: torch.device) -> None:
    with report.step("dataset"):
        bench = Bench(scale, root, device)
    whole = trainer(bench, "paper", MaskConfig())
    objective: Any = whole.objective
    model, kept, patches = objective.model, objective.masks.kept, objective.masks.patches
    flops = flops_per_image(model, kept)
    report.add(model=scale.model.name, batch=scale.batch, patches=patches, seen=kept, gflop_per_image=round(flops / 1e9, 2))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with report.step("with the loader"):
        found = bench.from_loader(whole)
        peak = bf16_peak_tflops(torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")
        tflops = found["images_per_second"] * flops / 1e12
        report.add(**found, model_tflops=round(tflops, 2), bf16_peak_tflops=peak, share_of_peak=peak and round(tflops / peak, 4))
    if device.type == "cuda":
        report.add(peak_memory_gb=round(torch.cuda.max_memory_allocated(device) / 1e9, 2))
    batch = next(iter(whole.loader))
    with report.step("resident batch"):
        seconds = bench.resident(whole, batch)
        report.add(step_milliseconds=round(1e3 * seconds, 3))
    with report.step("nothing dropped"):
        undropped = bench.resident(trainer(bench, "undropped", MaskConfig(drop_share=0.0)), batch)
        report.add(undropped_step_milliseconds=round(1e3 * undropped, 3), step_over_undropped=round(seconds / undropped, 3))
    with report.step("compiled"):
        compiled = bench.resident(trainer(bench, "compiled", MaskConfig(), compile=True), batch)
        report.add(compiled_step_milliseconds=round(1e3 * compiled, 3), compiled_over_eager=round(seconds / compiled, 3))


if __name__ == "__main__":
    run_part(measure, TINY, BASE)
