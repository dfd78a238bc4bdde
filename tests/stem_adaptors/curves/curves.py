"""Small curves, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.stem_adaptors.comparison.results import result_of
from tokenshards.pipeline.config import RunConfig
from tokenshards.stem_adaptors.comparison.timed_run import Run
from tokenshards.stem_adaptors.curves.curve_config import CurveRequest
from tokenshards.stem_adaptors.curves.result import Curve, Point
from tokenshards.stem_adaptors.data.subsets import Subset

SEEDS, IMAGES = 2, 40


def point(side: str, budget: int, images: int, mean: float, **more: Any) -> Point:
    runs = (Run(side=side, data="d", seed=seed, seconds=120, subset=Subset(choice="stratified", images=images)) for seed in range(SEEDS))
    return Point(side=side, budget=budget, images=images, bytes_per_image=mean, runs=tuple(runs), **more)


def right(share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((SEEDS, IMAGES)) < share).astype(float)


def curve_of(points: Sequence[Point], right_of: dict[Point, np.ndarray], **places: np.ndarray) -> Curve:
    request = CurveRequest(
        data_url="data", val_url="val", budgets=(1,), minutes=2.0, seeds=SEEDS, out_url="out", run=RunConfig()
    )  # fmt: skip
    results = {run: result_of(right_of[one][seed], 3.0 + seed) for one in points for seed, run in enumerate(one.runs)}
    every = {one.runs[0].side: np.arange(IMAGES) for one in points if one.runs}
    return Curve.of(request, points, results, {**every, **{name.replace("_", " "): value for name, value in places.items()}}, 8400)
