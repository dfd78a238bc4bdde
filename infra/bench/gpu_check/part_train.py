"""Training from tokens: ViT-S in bfloat16 with full augmentation, and the parts of a step's time.

Shapes: B samples, N rows of the dataset, L sites, Q ids per site.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Report, Skipped, bf16_peak_tflops, finish, seconds_of
from loader_throughput import SITES, WIDTH, write_dataset

from tokenshards.pipeline.shards import TokenDataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.networks.exact_float32 import exact_float32
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.classifier import VisionTransformer, build_classifier
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.trainer import Trainer, TrainRequest

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaLaunchCooperativeKernel")
FULL = AugmentConfig(flip_prob=0.5, coloradapt_prob=0.25, dropout_prob=0.1, mixup_alpha=0.8)
"""SeiT's augmentations, which are the defaults, and also every augmentation that the defaults leave off."""
PLAIN = AugmentConfig.off()
PROFILED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The amount of work."""

    model: ModelConfig
    rows: int
    codes: int
    batch: int
    warm_up: int
    steps: int
    agreement_rows: int


REAL = Scale(
    model=ModelConfig(name="vit_small", drop_path=0.1), rows=20_480, codes=8192, batch=1024, warm_up=8, steps=40, agreement_rows=64
)
SMALL = Scale(
    model=ModelConfig(name="vit_nano", width=16, depth=1, heads=2), rows=32, codes=64, batch=8, warm_up=1, steps=2, agreement_rows=8
)


class Quiet:
    """A reporter that prints nothing."""

    def say(self, message: str) -> None: ...

    def step(self, epoch: int, step: int, steps: int, images_per_second: float, loss: float) -> None: ...

    def epoch(self, record: dict[str, Any]) -> None: ...


class Bench:
    """A training on a given number of rows. Every measurement begins with steps that do not count."""

    def __init__(self, scale: Scale, root: Path, device: torch.device) -> None:
        self.scale, self.root, self.device = scale, root, device
        rng = np.random.default_rng(0)
        ids_NL = rng.integers(0, scale.codes, (scale.rows, SITES)).astype(np.uint16)
        self.dataset: TokenDataset = write_dataset(ids_NL, rng.standard_normal((scale.codes, WIDTH)).astype(np.float32), root / "tokens")

    def trainer(self, augment: AugmentConfig, name: str, **train: Any) -> Trainer:
        config = TrainConfig(**{"epochs": 100, "ema_decay": 0.999, "precision": "bf16", "checkpoint_seconds": 3600.0, **train})
        request = TrainRequest(
            data=self.dataset,
            val=None,
            out=Store(str(self.root / name)),
            model=self.scale.model,
            augment=augment,
            loader=LoaderConfig(batch_size=self.scale.batch, cache_dir=str(self.root / "cache")),
            train=config,
        )
        return Trainer(request, Ranks(), self.device, Quiet())

    def from_loader(self, trainer: Trainer) -> dict[str, float]:
        """Return images/s with the loader, and the share of the time that the training waited for the loader."""
        waited, began, done, trainer_epoch = 0.0, 0.0, 0, 0
        while done < self.scale.warm_up + self.scale.steps:
            asked = time.perf_counter()
            for batch in trainer.loader.epoch(trainer_epoch):
                waited += time.perf_counter() - asked
                if done == self.scale.warm_up:
                    finish()
                    began, waited = time.perf_counter(), 0.0
                step(trainer, batch)
                done += 1
                if done == self.scale.warm_up + self.scale.steps:
                    break
                asked = time.perf_counter()
            trainer_epoch += 1
        finish()
        seconds = time.perf_counter() - began
        return {"images_per_second": round(self.scale.steps * self.scale.batch / seconds, 1), "data_wait_share": round(waited / seconds, 4)}

    def loader_alone(self, trainer: Trainer) -> float:
        """Return images/s of batches that arrive on the device while nothing else runs."""
        rows, began = 0, time.perf_counter()
        for epoch in range(2):
            rows += sum(len(batch) for batch in trainer.loader.epoch(epoch))
        finish()
        return rows / (time.perf_counter() - began)

    def resident(self, trainer: Trainer, batch: Batch) -> float:
        """Return the seconds of a step on a batch that is already on the device."""
        for _ in range(self.scale.warm_up):
            step(trainer, batch)

        def loop() -> None:
            for _ in range(self.scale.steps):
                step(trainer, batch)

        return seconds_of(loop) / self.scale.steps


def step(trainer: Trainer, batch: Batch) -> None:
    trainer.model.train()
    trainer._train_step(batch)
    trainer.step += 1


def flops_per_image(model: VisionTransformer) -> float:
    """Return multiplications and additions of a training step per image, without augmentation. Backward counts twice the forward pass."""
    width, tokens = model.pos_embed.shape[2], model.pos_embed.shape[1]
    stem = sum(parameter.numel() for parameter in model.patch_embed.parameters() if parameter.ndim > 1) * (tokens - 1)
    blocks = len(model.blocks) * (12 * width * width * tokens + 2 * tokens * tokens * width)
    return 3.0 * 2.0 * (stem + blocks + model.head.weight.numel())


def profiled(work: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """Return kernel launches of a step, and the share of its wall time in which kernels ran. Skipped where there is no GPU."""
    if device.type != "cuda":
        work()
        raise Skipped("kernel launches are counted on a GPU")
    from torch.profiler import ProfilerActivity, profile

    work()
    finish()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        began = time.perf_counter()
        for _ in range(PROFILED_STEPS):
            work()
        finish()
        seconds = time.perf_counter() - began
    calls, busy = Counter[str](), 0.0
    for event in found.key_averages():
        calls[event.key] += event.count
        busy += device_milliseconds(event)
    launches = sum(calls[name] for name in LAUNCHES)
    waits = sum(calls[name] for name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"))
    return {
        "kernel_launches": round(launches / PROFILED_STEPS, 1),
        "waits_for_the_device": round(max(0, waits - 1) / PROFILED_STEPS, 1),  # without the wait at the end
        "busy_share": round(busy / 1e3 / seconds, 3),
        "slowest_kernels": slowest(found),
    }


def device_milliseconds(event: Any) -> float:
    """Return the time of a kernel or a copy. 0 for an operation of the host, because the profiler repeats its kernels' time there."""
    on_device = str(event.device_type).endswith("CUDA")
    return float(getattr(event, "self_device_time_total", 0.0)) / 1e3 if on_device else 0.0


def slowest(found: Any) -> dict[str, float]:
    """Return the milliseconds per step of the slowest kernels."""
    totals = {event.key[:80]: device_milliseconds(event) / PROFILED_STEPS for event in found.key_averages()}
    return {name: round(value, 3) for name, value in sorted(totals.items(), key=lambda item: -item[1])[:8]}


def agreement(bench: Bench, batch: Batch) -> dict[str, Any]:
    """Return how far the logits of an untrained classifier differ between devices and dtypes; no bar."""
    dataset, rows = bench.dataset, bench.scale.agreement_rows
    ids_BLQ = batch.ids_BLQ[:rows].cpu()
    logits: dict[str, torch.Tensor] = {}
    for place in ("cpu", "device"):
        device = torch.device("cpu") if place == "cpu" else bench.device
        model = build_classifier(dataset.spec, dataset.codebook(), None, bench.scale.model, len(dataset.classes)).eval().to(device)
        with torch.inference_mode():
            logits[f"{place}_fp32"] = model(ids_BLQ.to(device)).cpu().double()
            with exact_float32():
                logits[f"{place}_fp32_without_tf32"] = model(ids_BLQ.to(device)).cpu().double()
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits[f"{place}_bf16"] = model(ids_BLQ.to(device)).cpu().double()

    def compared(left: str, right: str) -> dict[str, float]:
        a, b = logits[left], logits[right]
        return {
            "relative_error": float((a - b).norm() / b.norm()),
            "largest_difference": float((a - b).abs().max()),
            "same_top1": float((a.argmax(1) == b.argmax(1)).double().mean()),
        }

    return {
        "fp32": compared("device_fp32", "cpu_fp32"),
        "fp32_without_tf32": compared("device_fp32_without_tf32", "cpu_fp32"),
        "bf16": compared("device_bf16", "cpu_bf16"),
        "device_bf16_and_cpu_fp32": compared("device_bf16", "cpu_fp32"),
        "rows": rows,
    }


def measure(report: Report, scale: Scale, root: Path, device: torch.device) -> None:
    with report.step("dataset"):
        bench = Bench(scale, root, device)
    trainer = bench.trainer(FULL, "full")
    backbone: Any = trainer.model.backbone
    flops = flops_per_image(backbone)
    report.add(model=scale.model.name, batch=scale.batch, tokens=backbone.pos_embed.shape[1], gflop_per_image=round(flops / 1e9, 2))
    with report.step("with the loader"):
        found = bench.from_loader(trainer)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        peak = bf16_peak_tflops(name)
        tflops = found["images_per_second"] * flops / 1e12
        report.add(**found, model_tflops=round(tflops, 2), bf16_peak_tflops=peak, share_of_peak=peak and round(tflops / peak, 4))
    batch = next(iter(trainer.loader))
    with report.step("resident batch"):
        whole = bench.resident(trainer, batch)
        report.add(step_milliseconds=round(1e3 * whole, 3), resident_images_per_second=round(scale.batch / whole, 1))
    with report.step("data wait"):
        # The host does not wait for copies, but kernels do: this share has both, and the noise of two clocks.
        report.add(
            loader_alone_images_per_second=round(bench.loader_alone(trainer), 1),
            data_wait_share_of_step=round(1 - whole * found["images_per_second"] / scale.batch, 4),
        )
    with report.step("without augmentation"):
        plain_trainer = bench.trainer(PLAIN, "plain")
        plain = bench.resident(plain_trainer, batch)
        report.add(plain_step_milliseconds=round(1e3 * plain, 3), augmentation_share=round(1 - plain / whole, 4))
    with report.step("launches"):
        report.add(
            full_step=profiled(lambda: step(trainer, batch), device), plain_step=profiled(lambda: step(plain_trainer, batch), device)
        )
    with report.step("agreement"):
        report.add(agreement=agreement(bench, batch))
    with report.step("a whole run"):
        small = replace(trainer.request, train=TrainConfig(epochs=1, precision="bf16"), out=Store(str(root / "run")))
        result = Trainer(small, Ranks(), device, Quiet()).fit()
        report.add(run={key: result.record[key] for key in ("train_loss", "images_per_second", "data_wait_share")})
    if device.type == "cuda":
        report.add(peak_memory_gb=round(torch.cuda.max_memory_allocated(device) / 1e9, 2))
    with report.step("compiled"):
        compiled = bench.resident(bench.trainer(FULL, "compiled", compile=True), batch)
        report.add(compiled_step_milliseconds=round(1e3 * compiled, 3), compiled_over_eager=round(whole / compiled, 3))


def run_part(measure: Callable[[Report, Scale, Path, torch.device], None], small: Scale, real: Scale) -> None:
    """Run a part that trains, in a temporary folder, from its command line. Exits with 1 where a step failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    report, root = Report(options.out), Path(tempfile.mkdtemp(prefix="gpu-check-"))
    device = torch.device("cpu") if options.cpu else torch.device("cuda", torch.cuda.current_device())
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # importing the loader bench, for its dataset, has set one thread
    try:
        measure(report, small if options.cpu else real, root, device)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    sys.exit(1 if report.values.get("failed") else 0)


if __name__ == "__main__":
    run_part(measure, SMALL, REAL)
