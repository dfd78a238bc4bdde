"""The objective of masked token modelling: augmented ids, dropout, measures, and what an accelerator asks of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.stem_adaptors.augment.layouts import batch_at, grid, ids_of, keys_of, pyramid, sequence, spec_of, tables_of, video
from tests.stem_adaptors.augment.test_compiled import NoDoubles
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import Layout
from tokenshards.stem_adaptors.augment import PRESETS, allowed_augmentations
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.objectives.base import Answers, Blueprint
from tokenshards.stem_adaptors.objectives.masked_tokens import MaskedTokenMeasure, MaskedTokenObjective
from tokenshards.stem_adaptors.ranks import Ranks

MODEL = ModelConfig(name="vit_nano", width=16, depth=1, heads=2, stem="patch", learned_codebook=True, embed_norm=True)
MASK = MaskConfig(decoder_depth=1)
LAYOUTS = [grid(8, 10, 2), grid(5, 7), grid(8, 8, variable=True), video(2, 8, 8), pyramid((1, 1), (2, 2), (4, 4)), sequence(12)]


def objective_for(layout: Layout, *, augment: AugmentConfig | None = None, codebook: bool = True, **changes: Any) -> MaskedTokenObjective:
    spec = spec_of(layout)
    tables = tables_of(spec)
    if not codebook:
        spec, tables = dataclasses.replace(spec, codebook=None), {}
    parts: dict[str, Any] = {"model": MODEL, "mask": MASK, **changes}
    return MaskedTokenObjective.build(
        Blueprint(
            spec=spec,
            tables=tables,
            statistics=None,
            classes=(),
            augment=augment or allowed_augmentations(spec, PRESETS["mtm"]),
            draws=DRAWS,
            **parts,
        )
    )


def batch_for(layout: Layout, samples: int = 6, **keys: int) -> Batch:
    batch = batch_at(ids_of(spec_of(layout), samples), keys_of(samples, **keys))
    if not layout.variable:
        return batch
    shapes_BD = torch.tensor([[2 + index % 7, 3 + index % 5] for index in range(samples)])
    lengths_B = shapes_BD.prod(1)
    there_BL = torch.arange(layout.sites) < lengths_B[:, None]
    ids_BLQ = batch.ids_BLQ.long().masked_fill(~there_BL[..., None], 23)
    return dataclasses.replace(batch, ids_BLQ=ids_BLQ, lengths_B=lengths_B, shapes_BD=shapes_BD)


@pytest.mark.parametrize("codebook", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_learns(layout: Layout, codebook: bool) -> None:
    """The same six samples again and again: the loss falls, and every weight gets a gradient."""
    nothing = AugmentConfig(synonym_prob=0, swap_prob=0, crop="centre", crop_share=1.0, noise_prob=0, cutmix_prob=0)
    objective = objective_for(layout, augment=None if codebook else nothing, codebook=codebook)
    optimizer, losses = torch.optim.AdamW(objective.model.parameters(), lr=1e-2), []
    for epoch in range(25):
        loss = objective(batch_for(layout, epoch=epoch)).loss_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in objective.model.parameters())
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2 and losses[0] < 2 * math.log(23)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nothing_waits_for_a_value(layout: Layout) -> None:
    objective, batch = objective_for(layout).to("meta"), batch_for(layout).to("meta")
    objective(batch)  # constants are made and moved in the first step
    with NoDoubles():
        objective(batch).loss_B.sum().backward()
        objective.answers(batch)


@pytest.mark.usefixtures("no_recompilation")
def test_one_graph_trains_and_one_measures_for_all_steps_and_epochs() -> None:
    layout = grid(8, 8, 2)
    model = dataclasses.replace(MODEL, depth=2, drop_path=0.2)
    expected, compiled = (objective_for(layout, model=model, label_smoothing=0.1) for _ in range(2))
    compiled.compile_model(backend="aot_eager")
    for epoch in range(2):
        for step in range(2):
            part = batch_for(layout, start=6 * step, epoch=epoch)
            found, wanted = (one.train()(part) for one in (compiled, expected))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        with torch.inference_mode():
            answers = [one.eval().answers(part) for one in (compiled, expected)]
        torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


def test_what_is_predicted_are_the_ids_of_the_augmented_sample() -> None:
    """Without augmentation the targets are the stored ids; a flip moves them; a resized crop makes them the nearest codes."""
    layout = grid(6, 6)
    batch = batch_for(layout)
    seen: list[torch.Tensor] = []

    def ids_with(ops: str) -> torch.Tensor:
        objective = objective_for(layout, augment=AugmentConfig(ops=ops))
        forward = objective.model.forward
        objective.model.forward = lambda x, ids_BLQ, *rest: (seen.append(ids_BLQ), forward(x, ids_BLQ, *rest))[1]  # type: ignore[method-assign,func-returns-value]
        objective(batch)
        return seen.pop().long()

    stored = batch.ids_BLQ.long()
    assert torch.equal(ids_with("flip()"), stored.view(6, 6, 6, 1).flip(2).flatten(1, 2))
    assert torch.equal(ids_with("centre_crop(share=1)"), stored)
    cropped = ids_with("rrc(share=0.7)")
    assert cropped.shape == (6, 16, 1) and torch.equal(cropped, ids_with("rrc(share=0.7), quantise()"))
    assert torch.equal(ids_with("centre_crop(share=0.7)"), stored.view(6, 6, 6, 1)[:, 1:5, 1:5].flatten(1, 2))
    assert torch.equal(ids_with("random_crop(share=0.7)"), ids_with("random_crop(share=0.7), quantise()"))  # one level: exact both ways


def test_a_crop_that_resamples_nothing_keeps_ids_of_several_levels() -> None:
    """And it needs no codebook."""
    layout = grid(6, 8, 2)
    batch = batch_for(layout)
    objective = objective_for(layout, augment=AugmentConfig(ops="flip(), random_crop(share=0.5)"), codebook=False)
    found = objective.transform.quantised(objective.lookup, objective.transform.inputs(objective.lookup, batch))
    mirrored = batch.ids_BLQ.long().view(6, 6, 8, 2).flip(2)
    places = [
        [
            (y, x)
            for y in range(3)
            for x in range(5)
            if torch.equal(mirrored[sample, y : y + 4, x : x + 4].flatten(0, 1), found[sample].long())
        ]
        for sample in range(6)
    ]
    assert all(len(own) == 1 for own in places) and len({own[0] for own in places}) > 1


def test_dropout_is_that_of_the_sample() -> None:
    objective = objective_for(grid(8, 8), mask=MaskConfig(decoder_depth=1, embed_dropout=0.25))
    plan = objective._draws(torch.device("cpu"))
    x = torch.ones(64, 4, 8, 8)
    epoch_21 = torch.tensor([[1], [2]], dtype=torch.int32)
    dropped = objective._dropped_out(x, plan(epoch_21, torch.arange(64)))
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert dropped[dropped > 0].unique().tolist() == [pytest.approx(1 / 0.75)]
    assert torch.equal(dropped[10:20], objective._dropped_out(x[:10], plan(epoch_21, torch.arange(10, 20))))


def test_a_measurement_hides_the_same_patches_each_time_and_reads_no_label() -> None:
    layout = grid(8, 8)
    objective = objective_for(layout).eval()
    batch = batch_for(layout)
    unlabelled = dataclasses.replace(batch, labels_B=torch.full((6,), -1))
    with torch.no_grad():
        first, second = objective.answers(batch), objective.answers(unlabelled)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.outputs[:, 1].tolist() == [math.ceil(64 * 0.75)] * 6  # the grid of 8 x 8 has a patch for each site
    assert torch.equal(objective.weights_B(unlabelled), batch.weights_B)


def test_the_figures_are_sums_over_ids() -> None:
    measure = MaskedTokenMeasure(torch.device("cpu"))
    batch = dataclasses.replace(batch_for(grid(2, 2), 3), weights_B=torch.tensor([1.0, 1.0, 0.0]))
    sums_B3 = torch.tensor([[2.0, 4.0, 8.0], [1.0, 2.0, 1.0], [9.0, 9.0, 9.0]])  # the last sample is padding
    measure.add(batch, Answers(torch.tensor([3.0, 1.0, 100.0]), sums_B3))
    again = MaskedTokenMeasure(torch.device("cpu"))
    again.add_tensors(measure.tensors(Ranks()))
    for found in (measure, again):
        assert found.record(Ranks()) == {"loss": 2.0, "masked_accuracy": 0.5, "perplexity": pytest.approx(math.exp(1.5)), "images": 2}


def test_embeddings_without_a_codebook_cannot_become_ids_again() -> None:
    with pytest.raises(ConfigError, match="has no codebook, so embeddings have no nearest ids; leave out operations on embeddings"):
        objective_for(grid(6, 6), codebook=False)
