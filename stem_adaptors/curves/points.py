"""What the sides of a curve share: how many images a subset needs, and the trainings of a point."""

from __future__ import annotations

from dataclasses import replace

from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.comparison.timed_run import Run
from tokenshards.stem_adaptors.curves.curve_config import CurveRequest
from tokenshards.stem_adaptors.curves.result import Point
from tokenshards.stem_adaptors.data.subsets import Subset

__all__ = ["least_images", "trained"]


def least_images(choice: str, dataset: TokenDataset) -> tuple[int, str]:
    """Return how many images a subset must have, and which they are, in words."""
    classes = sum(count > 0 for count in dataset.manifest.class_counts)
    if choice == "random" or classes == 1:
        return 1, "an image"
    return classes, f"one of each of {classes:,} classes"


def trained(point: Point, request: CurveRequest, *, side: str, data: str, train_url: str = "", val_url: str = "") -> Point:
    """Return the point with a training for each seed. `side` and both URLs are those of Run; `data` is the digest of both datasets."""
    subset = Subset(choice=request.choice, images=point.images)
    runs = (
        Run(
            side=side,
            data=data,
            seed=seed,
            seconds=60 * request.minutes,
            device=request.device,
            train_url=train_url,
            val_url=val_url,
            subset=subset,
        )
        for seed in range(request.seeds)
    )
    return replace(point, runs=tuple(runs))
