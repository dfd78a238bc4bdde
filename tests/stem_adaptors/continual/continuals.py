"""A small continual learning, made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.stem_adaptors.continual.chains import CLASSES
from tokenshards.stem_adaptors.comparison.paired import packed
from tokenshards.stem_adaptors.continual.chain import Chain
from tokenshards.stem_adaptors.continual.continual_config import ALL, FILES, NONE
from tokenshards.stem_adaptors.continual.paired_figures import rows_of_lines
from tokenshards.stem_adaptors.continual.result import Continual, Line
from tokenshards.stem_adaptors.curves.curve_config import JPEG, TOKENS

SEEDS, STEPS, IMAGES = 2, 3, 45
CHAIN = Chain(
    data="d", classes=CLASSES, steps=STEPS, until=STEPS, images=0, choice="herding", seed=0, step_seconds=60, train_url="t", val_url="v",
    memory_url="m",
)  # fmt: skip


def line(side: str, budget: int | None, images: int | None, **more: Any) -> Line:
    chains = tuple(replace(CHAIN, seed=seed, data=side, images=images) for seed in range(SEEDS))
    return Line(side=side, budget=budget, bytes_per_image=100.0, place="whole" if side in (JPEG, FILES) else TOKENS, chains=chains, **more)


LINES = [
    line(NONE, None, 0), line(TOKENS, 1000, 10), line(JPEG, 1000, 10, detail="8 px, quality 3"),
    Line(side=FILES, budget=1000, bytes_per_image=2000, absent="room for 0 images"), line(TOKENS, 3000, 30), line(FILES, 3000, 5),
    line(ALL, None, None),
]  # fmt: skip
GROUPS_SN = np.stack([np.arange(IMAGES) % STEPS, (np.arange(IMAGES) + 1) % STEPS])
SHARES = {NONE: 0.3, TOKENS: 0.7, JPEG: 0.5, FILES: 0.6, ALL: 0.9}


def right_of(one: Line) -> np.ndarray:
    """Right answers [S, T, N], none of classes that have not come."""
    rng = np.random.default_rng(LINES.index(one))
    found = rng.random((SEEDS, STEPS, IMAGES)) < SHARES[one.side]
    return found & (GROUPS_SN[:, None] <= np.arange(STEPS)[:, None])


ORDER = np.random.default_rng(9).permutation(IMAGES)
"""Of the images in the sides of images, whose validation set has another order."""


def results() -> dict[Chain, dict[str, Any]]:
    found = {}
    for one in LINES:
        for seed, chain in enumerate(one.chains):
            right_TN = right_of(one)[seed][:, ORDER] if one.place == "whole" else right_of(one)[seed]
            steps = [
                {"right": packed(right_N), "images": IMAGES, "memory": step * (chain.images or 0), "epochs": 2.0 + seed}
                for step, right_N in enumerate(right_TN)
            ]
            found[chain] = {"steps": steps}
    return found


def continual_of() -> Continual:
    places = {TOKENS: np.arange(IMAGES), "whole": np.argsort(ORDER)}
    return Continual(
        out="out",
        minutes=1.0,
        seeds=SEEDS,
        choice="herding",
        measured=IMAGES,
        groups=((("a", "b"), ("c",), ("d",)), (("b", "c"), ("a",), ("d",))),
        tokenizer_bytes=8400,
        rows=rows_of_lines(LINES, results(), places, GROUPS_SN),
    )
