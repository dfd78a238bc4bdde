"""What a masked token model finds again: the tokens of some samples, the same with most sites hidden, and the model's completion.

Shapes: B samples, L sites, Q ids per site, N patches, P sites of a patch, H x W grid.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenshards.pipeline.commands.options import parse_options
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.reports.previews import View, spread_samples, views_drawing
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.pipeline.shards.spec import Layout
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.commands.pretrain_options import PretrainOptions
from tokenshards.stem_adaptors.commands.run_drawings import keep_drawing
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.objectives.masked_tokens import MaskedTokenObjective
from tokenshards.stem_adaptors.reporting.progress import TrainingReporter
from tokenshards.stem_adaptors.training.run_directory import open_objective

__all__ = ["RECONSTRUCTIONS", "draw_reconstructions", "masked_views"]

RECONSTRUCTIONS = "reconstructions.png"
RATIO = 0.75
SHOWN = 6


def masked_views(run: Store, dataset: TokenDataset, tokens: TokenBatch, *, ratio: float = RATIO, seed: int = 0) -> list[View]:
    """Return variants of tokens: as stored, with a share of the patches hidden, and with the ids that the run's model puts there.

    The model sees the ids that are not hidden, and each id that it puts is its most probable one, all at once. Raises ConfigError for a run
    that was not pre-trained, or on other tokens, and for samples of varying size.
    """
    objective, found = open_objective(run)
    if not isinstance(objective, MaskedTokenObjective):
        raise ConfigError(f"{run.url}: the run learned {found.objective!r}; expected one of `pretrain`")
    if found.spec.fingerprint != dataset.spec.fingerprint:
        raise ConfigError(
            f"{run.url} learned from tokens of {found.spec.fingerprint[:12]}…; {dataset.store.url} has those of "
            f"{dataset.spec.fingerprint[:12]}…. Give a dataset of the same tokenizer"
        )
    layout = dataset.spec.layout
    if layout.variable:
        raise ConfigError("samples of varying size cannot be shown with hidden sites")
    ids_BLQ = torch.from_numpy(tokens.ids_BLQ.astype(np.int64))
    places_B = torch.arange(len(ids_BLQ))
    batch = Batch(ids_BLQ, places_B, torch.ones(len(ids_BLQ)), places_B, places_B, epoch=0, seed=seed)
    with torch.inference_mode():
        _, masks, best_BLQ = objective.hidden(batch, ratio)
    sites_NP = objective.model.sites_NP
    real_NP = sites_NP >= 0
    hidden_BL = torch.zeros(best_BLQ.shape[:2], dtype=torch.bool)
    hidden_BL[:, sites_NP[real_NP]] = masks.masked_BN[..., None].expand(-1, -1, sites_NP.shape[1])[:, real_NP]
    whole_BL = _whole(hidden_BL[..., None], layout, objective.transform.out_grid)[..., 0] > 0
    put_BLQ = torch.where(whole_BL[..., None], _whole(best_BLQ, layout, objective.transform.out_grid), ids_BLQ)
    completed = TokenBatch(put_BLQ.numpy().astype(dataset.spec.id_dtype))
    if layout.kind != "grid":
        return [("tokens\nas stored", tokens), ("completed\nby the model", completed)]
    seen_BL1 = _whole(torch.ones(*best_BLQ.shape[:2], 1, dtype=torch.int64), layout, objective.transform.out_grid)
    outside_BL = seen_BL1[..., 0] == 0  # the edge that the crop leaves out: neither seen nor completed
    return [
        ("tokens\nas stored", tokens),
        (f"{ratio:.0%} hidden", tokens, (whole_BL | outside_BL).view(-1, *layout.grid).numpy()),
        ("completed\nby the model", completed, outside_BL.view(-1, *layout.grid).numpy()),
    ]


def _whole(part_BLQ: Tensor, layout: Layout, grid: tuple[int, ...] | None) -> Tensor:
    """Return values of the centre crop at their places in the whole grid, zeros around them."""
    if grid is None or grid == layout.grid:
        return part_BLQ.long()
    out = torch.zeros(len(part_BLQ), *layout.grid, part_BLQ.shape[2], dtype=torch.int64)
    inside = out
    for axis, (whole, side) in enumerate(zip(layout.grid, grid, strict=True), start=1):
        inside = inside.narrow(axis, (whole - side) // 2, side)
    inside.copy_(part_BLQ.view(inside.shape))
    return out.flatten(1, -2)


def draw_reconstructions(options: PretrainOptions, reporter: TrainingReporter) -> None:
    """Draw images of the validation set (else of the training set) with 75 % hidden, and completed, into the run directory.

    Where the tokenizer cannot draw images, say so.
    """
    stores = parse_options(options.storage_option)
    out = Store(options.out, storage_options=stores)
    dataset = open_dataset(options.val or options.data, storage_options=stores)

    def draw() -> Any:
        return views_drawing(dataset, spread_samples(dataset, SHOWN), functools.partial(masked_views, out))

    keep_drawing(out, RECONSTRUCTIONS, draw, f"what the model puts in the place of {RATIO:.0%} hidden sites", reporter)
