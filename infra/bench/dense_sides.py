"""The dense labels of scenarios.py: images with shapes, stored as tokens of two kinds and as pixels, and a training on their masks.

Shapes: S seeds, N measured images, C classes.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from paired_runs import in_processes
from shapes import CLASSES, write_shapes

import tokenshards
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.stem_adaptors.comparison.image_sides import pixels_of_size
from tokenshards.stem_adaptors.comparison.paired import interval
from tokenshards.stem_adaptors.comparison.timed_run import MODEL
from tokenshards.stem_adaptors.config import LoaderConfig, TrainConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.objectives.segment import SegmentObjective
from tokenshards.stem_adaptors.segment_config import SegmentConfig
from tokenshards.stem_adaptors.training.defaults import segmenting_configs
from tokenshards.stem_adaptors.training.timed_trainer import TimedTrainer, clock_of
from tokenshards.stem_adaptors.training.training_request import TrainRequest

SIDE = 64
SIDES = ("pixels", "pixel_codes", "recognition")
KINDS: dict[str, dict[str, Any]] = {
    "pixel_codes": {"kind": "patch-kmeans", "size": SIDE},
    "recognition": {"kind": "layered-kmeans", "size": SIDE, "codes": 1024},
}
"""How the tokenizer of each kind is made."""
TOKENS_A_SIDE = 8
"""Tokens of the transformer along each axis, where the side has as many sites."""
MEASURED_TOGETHER = 100
RESAMPLES = 2000


def prepare_dense(data: Path, work: Path, quick: bool) -> dict[str, Any]:
    """Draw the shapes, and store images and masks on every side, what is missing of it. Return bytes and images of each side."""
    made: dict[str, Any] = {}
    for part, seed in (("train", 0), ("val", 1)):
        photos = sorted(path for path in (data / part).rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
        np.random.default_rng(0).shuffle(photos)  # type: ignore[arg-type]
        if not (work / "shapes" / part).exists():
            unfinished = Path(tempfile.mkdtemp(dir=work)) / part
            write_shapes(photos[: len(photos) // 10] if quick else photos, unfinished, size=SIDE, seed=seed)
            (work / "shapes").mkdir(exist_ok=True)
            unfinished.rename(work / "shapes" / part)
            unfinished.parent.rmdir()
    for side in SIDES:
        if side == "pixels" and not (work / side / "tokenizer").exists():
            save_tokenizer(pixels_of_size(SIDE), Store(str(work / side / "tokenizer")), "")
        for part in ("train", "val"):
            tokenizer = str(work / side / "tokenizer") if side == "pixels" else str(work / side / "train") if part == "val" else None
            how: dict[str, Any] = {"tokenizer": tokenizer} if tokenizer else KINDS[side]
            source = work / "shapes" / part
            codec = "default" if side == "pixels" else "compact"
            tokenshards.tokenize(
                str(source / "images"), str(work / side / part), masks=str(source / "masks"), no_labels=True, codec=codec, workers=1, **how
            )
        dataset = open_dataset(str(work / side / "train"))
        made[side] = {"images": len(dataset), "grid": list(dataset.spec.layout.grid), "bytes_per_image": _mean_bytes(dataset)}
    return made


def _mean_bytes(dataset: TokenDataset) -> float:
    return round(dataset.manifest.totals["token_bytes"] / len(dataset), 1)


def train_dense(work: Path, side: str, head: str, seed: int, seconds: float) -> dict[str, Any]:
    """Train one segmenter for so many CPU seconds, and measure every image; keep the result."""
    place = work / "dense" / f"{side}-{head}-{seed}-{seconds:g}.json"
    if place.exists():
        found: dict[str, Any] = json.loads(place.read_text())
        return found
    torch.set_num_threads(1)
    train, val = (open_dataset(str(work / side / part)) for part in ("train", "val"))
    usual, device = segmenting_configs(train), torch.device("cpu")
    begun = clock_of(device)
    with tempfile.TemporaryDirectory() as folder:
        request = TrainRequest(
            data=train,
            val=None,
            out=Store(folder),
            objective="segment",
            model=replace(MODEL, stem="conv", stem_patch=max(1, train.spec.layout.grid[0] // TOKENS_A_SIDE)),
            augment=replace(usual["augment"], crop_scale_min=0.5, noise_prob=0.0),
            segment=SegmentConfig(head=head, channels=32),
            loader=LoaderConfig(batch_size=32, seed=seed),
            train=TrainConfig(lr=2e-3, label_smoothing=0.0, seed=seed, device="cpu", checkpoint_seconds=1e6),
        )
        trainer = TimedTrainer(request, device, begun=begun, seconds=seconds, warmup=0.1)
        trainer.train()
    assert isinstance(trainer.objective, SegmentObjective)
    pixels_N3C = measured(trainer.objective, val)
    found = {**trainer.figures(), "side": side, "head": head, "seed": seed, "pixels": pixels_N3C.tolist()}
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(found))
    print(f"{side} {head} {seed}: mean IoU {miou(pixels_N3C):.3f}", flush=True)
    return found


@torch.inference_mode()
def measured(objective: SegmentObjective, val: TokenDataset) -> np.ndarray:
    """Return int64 [N, 3, C]: right, predicted and labelled pixels of each class in each image."""
    objective.model.eval()
    align, found = objective.align(val), []
    for batch in TokenLoader(val, batch_size=MEASURED_TOGETHER, order="sequential", end="pad", label_maps=True):
        counts_B3C = objective.answers(align(batch)).outputs
        found.append(counts_B3C[batch.weights_B > 0].numpy())
    return np.concatenate(found)


def miou(pixels_N3C: np.ndarray) -> float:
    """Return the mean intersection over union of all pixels of some images."""
    right_C, predicted_C, labelled_C = pixels_N3C.sum(axis=0)
    return float(np.mean(right_C / np.maximum(1, predicted_C + labelled_C - right_C)))


def dense_summary(runs: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """Return the mean IoU of each side and head over images and seeds, and the differences to pixels, each with its interval."""
    counts = {(run["side"], run["head"], run["seed"]): np.array(run["pixels"]) for run in runs}
    names = sorted({(side, head) for side, head, _ in counts})
    rng, images = np.random.default_rng(0), len(next(iter(counts.values())))
    drawn = {name: np.empty(RESAMPLES) for name in names}
    for draw in range(RESAMPLES):  # every side gets the same images and seeds
        rows, chosen = rng.integers(0, images, images), rng.choice(seeds, len(seeds))
        for name in names:
            drawn[name][draw] = np.mean([miou(counts[*name, int(seed)][rows]) for seed in chosen])
    means = {name: float(np.mean([miou(counts[*name, seed]) for seed in seeds])) for name in names}
    by_class = {name: np.mean([_iou(counts[*name, seed]) for seed in seeds], axis=0) for name in names}
    return {
        " ".join(name): {
            "miou": [round(means[name], 4), *interval(drawn[name])],
            "over_pixels": [round(means[name] - means["pixels", name[1]], 4), *interval(drawn[name] - drawn["pixels", name[1]])],
            "iou": dict(zip(CLASSES, by_class[name].round(4).tolist(), strict=True)),
        }
        for name in names
    }


def _iou(pixels_N3C: np.ndarray) -> np.ndarray:
    right_C, predicted_C, labelled_C = pixels_N3C.sum(axis=0)
    found: np.ndarray = right_C / np.maximum(1, predicted_C + labelled_C - right_C)
    return found


def run_dense(work: Path, heads: list[str], seeds: list[int], seconds: float, workers: int) -> list[dict[str, Any]]:
    """Run what has no result, side after side within a seed, so that a bench that is stopped has compared sides."""
    arguments = [(work, side, head, seed, seconds) for seed in seeds for head in heads for side in SIDES]
    return list(in_processes(train_dense, arguments, workers))
