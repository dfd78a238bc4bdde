"""Small results of comparisons, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenshards.pipeline.config import RunConfig, SourceConfig
from tokenshards.stem_adaptors.comparison.compare_config import CompareRequest, Side
from tokenshards.stem_adaptors.comparison.paired import packed
from tokenshards.stem_adaptors.comparison.result import Comparison
from tokenshards.stem_adaptors.comparison.timed_run import Run

IMAGES = 40


def side(name: str, kind: str = "tokens", **changes: Any) -> Side:
    return Side(**{"name": name, "kind": kind, "place": f"sides/{name}", "data": "d", "size": 32, **changes})


def result_of(right_N: np.ndarray, epochs: float = 3.0) -> dict[str, Any]:
    return {"right": packed(right_N.astype(bool)), "images": len(right_N), "top1": round(float(right_N.mean()), 5), "epochs": epochs}


def comparison_of(sides: Sequence[Side], right: Mapping[str, np.ndarray], probes: Mapping[str, float] | None = None) -> Comparison:
    """`right`: by place, one row of 0 and 1 for each seed."""
    request = CompareRequest(
        tokenizers=tuple(one.name for one in sides if one.kind == "tokens"),
        images_url="images",
        images=SourceConfig(),
        val_url="val",
        val=SourceConfig(),
        out_url="out",
        minutes=2.0 if right else 0.0,
        seeds=2,
        run=RunConfig(),
    )
    runs = {
        Run(side=place, data="d", seed=seed, seconds=120): result_of(right_N, 3.0 + seed)
        for place, right_SN in right.items()
        for seed, right_N in enumerate(right_SN)
    }
    backwards = dict(reversed(runs.items()))  # results arrive in any order
    measured = {place: {"top1": top1, "images": IMAGES} for place, top1 in (probes or {}).items()}
    return Comparison.of(request, sides, measured, backwards)
